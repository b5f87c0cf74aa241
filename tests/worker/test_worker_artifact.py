"""What a manifest may say about the files beside it."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from worker.artifact import BadArtifact, collect


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "job" / "1"
    (out / "sub").mkdir(parents=True)
    (out / "model.safetensors").write_bytes(b"weights")
    (out / "sub" / "a.txt").write_bytes(b"a")
    (tmp_path / "secret").write_bytes(b"secret")
    return out


def _manifest(folder: Path, *files: dict[str, Any]) -> Path:
    (folder / "manifest.json").write_text(json.dumps({"digest": "d" * 64, "files": files}))
    return folder


def _file(path: str, size: int) -> dict[str, Any]:
    return {"path": path, "bytes": size, "sha256": "0" * 64}


def test_a_good_folder_is_registered_with_its_manifest(folder: Path) -> None:
    artifact = collect(_manifest(folder, _file("model.safetensors", 7), _file("sub/a.txt", 1)))
    assert artifact.digest == "d" * 64
    assert [file.path for file in artifact.files] == ["model.safetensors", "sub/a.txt", "manifest.json"]
    own = (folder / "manifest.json").read_bytes()
    assert (artifact.files[-1].bytes, artifact.files[-1].sha256) == (len(own), hashlib.sha256(own).hexdigest())


def test_a_signature_is_registered_behind_the_manifest_and_a_link_is_none(folder: Path) -> None:
    _manifest(folder, _file("model.safetensors", 7))
    (folder / "model.sig").symlink_to(folder.parents[1] / "secret")
    assert [file.path for file in collect(folder).files] == ["model.safetensors", "manifest.json"]
    (folder / "model.sig").unlink()
    (folder / "model.sig").write_bytes(b"bundle")
    signature = collect(folder).files[-1]
    assert (signature.path, signature.bytes) == ("model.sig", 6)
    assert signature.sha256 == hashlib.sha256(b"bundle").hexdigest()


@pytest.mark.parametrize("path", ["../../secret", "missing", "sub", "", ".", "link", "linked/secret"])
def test_a_path_that_is_no_file_of_the_folder_is_refused(folder: Path, path: str) -> None:
    (folder / "link").symlink_to(folder.parents[1] / "secret")
    (folder / "linked").symlink_to(folder.parents[1])
    with pytest.raises(BadArtifact, match="output folder"):
        collect(_manifest(folder, _file(path, 6)))


def test_an_absolute_path_is_refused(folder: Path) -> None:
    with pytest.raises(BadArtifact, match="output folder"):
        collect(_manifest(folder, _file(str(folder / "model.safetensors"), 7)))


def test_a_truncated_file_is_refused(folder: Path) -> None:
    with pytest.raises(BadArtifact, match="has 7 bytes"):
        collect(_manifest(folder, _file("model.safetensors", 8)))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"digest": "d", "files": [1]}', '{"digest": "d", "files": [{"path": "a"}]}']
)
def test_a_manifest_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(BadArtifact, match=r"manifest\.json"):
        collect(folder)


def test_folders_within_are_made_durable_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    monkeypatch.setattr("worker.artifact.flush", flushed.append)
    collect(_manifest(folder, _file("sub/a.txt", 1)))
    assert {folder / "sub", folder / "sub" / "a.txt", folder, folder.parent} <= set(flushed)
