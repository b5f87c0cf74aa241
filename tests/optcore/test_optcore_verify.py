"""What a folder is checked for: every file, the recipe, the manifest itself, and a manifest that means harm."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.artifacts import ALSO_RESULT, change_manifest, write_manifest

from optcore.manifest import ManifestUnreadable, MAX_MANIFEST_bytes, read_manifest
from optcore.verify import verify

RESULT = f"also/{ALSO_RESULT}"


def found(folder: Path) -> list[tuple[str, str]]:
    return [(each.kind, each.path) for each in verify(folder)]


def row(folder: Path, path: str, **more: Any) -> None:
    """One more row in the manifest."""
    document = {"path": path, "bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest(), **more}
    change_manifest(folder, lambda manifest: manifest["files"].append(document))


def fix_up(folder: Path, path: str) -> None:
    """Do as one who knows that there are hashes: write the right ones into the manifest."""
    data = (folder / path).read_bytes()

    def change(manifest: dict[str, Any]) -> None:
        (own,) = (each for each in manifest["files"] if each["path"] == path)
        own.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    change_manifest(folder, change)


def test_nothing_is_found_in_what_was_made(artifact: Path) -> None:
    assert verify(artifact) == verify(artifact / RESULT) == ()


@pytest.mark.parametrize("path", ["model.safetensors", "draft/model.safetensors", f"{RESULT}/model.safetensors"])
def test_one_flipped_bit_is_found(artifact: Path, path: str) -> None:
    data = bytearray((artifact / path).read_bytes())
    data[len(data) // 2] ^= 1
    (artifact / path).write_bytes(data)
    assert found(artifact) == [("changed", path)]


def test_missing_extra_and_cut_files_are_named(artifact: Path) -> None:
    (artifact / "config.json").unlink()
    (artifact / RESULT / "README.md").write_text("README")
    (artifact / "tokenizer").mkdir()
    (artifact / "tokenizer" / "modeling.py").write_text("import os")
    (artifact / "link").symlink_to("draft")
    assert set(found(artifact)) == {
        ("missing", "config.json"),
        ("changed", f"{RESULT}/README.md"),
        ("extra", "tokenizer/modeling.py"),
        ("extra", "link"),
    }


def test_an_edited_recipe_is_found_also_behind_a_right_hash(artifact: Path) -> None:
    recipe = artifact / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("int4", "int8"))
    assert ("changed", "recipe.yaml") in found(artifact)
    fix_up(artifact, "recipe.yaml")
    assert found(artifact) == [("recipe", "recipe.yaml")]
    recipe.write_text("a: &b [1]\nc: *b\n")
    fix_up(artifact, "recipe.yaml")
    assert found(artifact) == [("recipe", "recipe.yaml")]


def test_a_recipe_may_be_spelled_otherwise_by_those_who_fix_the_hash(artifact: Path) -> None:
    """What it says counts: the digest is of the document."""
    recipe = artifact / "recipe.yaml"
    recipe.write_text("# a comment\n" + recipe.read_text())
    fix_up(artifact, "recipe.yaml")
    assert found(artifact) == []


def test_weights_behind_a_right_hash_still_have_another_digest(artifact: Path) -> None:
    (artifact / "model.safetensors").write_bytes(b"others")
    fix_up(artifact, "model.safetensors")
    assert found(artifact) == [("manifest", "manifest.json")]


def test_a_further_result_must_say_what_the_whole_says(artifact: Path) -> None:
    change_manifest(artifact / RESULT, lambda manifest: manifest["files"][0].update(sha256="0" * 64))
    fix_up(artifact, f"{RESULT}/manifest.json")
    assert set(found(artifact)) == {("manifest", f"{RESULT}/manifest.json")}
    (artifact / RESULT / "manifest.json").write_text("[]")
    fix_up(artifact, f"{RESULT}/manifest.json")
    assert found(artifact) == [("manifest", f"{RESULT}/manifest.json")]


@pytest.mark.parametrize(
    "path", ["../secret", "draft/../../secret", "", ".", "./config.json", "a\x00b", "draft//x", "manifest.json", "x/.."]
)
def test_a_path_that_leaves_the_folder_is_never_opened(artifact: Path, path: str) -> None:
    (artifact.parent / "secret").write_bytes(b"secret")
    row(artifact, path)
    assert ("unsafe", path) in found(artifact)


def test_an_absolute_path_a_link_and_a_pipe_are_never_opened(artifact: Path) -> None:
    (artifact.parent / "secret").write_bytes(b"secret")
    (artifact.parent / "outside").mkdir()
    (artifact.parent / "outside" / "file").write_bytes(b"secret")
    (artifact / "link").symlink_to(artifact.parent / "secret")
    (artifact / "folder").symlink_to(artifact.parent / "outside")
    os.mkfifo(artifact / "pipe")
    paths = [str(artifact.parent / "secret"), "link", "folder/file", "pipe", "draft"]
    for path in paths:
        row(artifact, path)
    unsafe = [path for kind, path in found(artifact) if kind == "unsafe"]
    assert unsafe == paths


def test_odd_rows_are_findings(artifact: Path) -> None:
    row(artifact, "x" * 5000)
    row(artifact, "config.json")
    row(artifact, "negative", bytes=-1)
    (artifact / "negative").write_bytes(b"secret")
    kinds = found(artifact)
    assert {("missing", "x" * 5000), ("manifest", "config.json"), ("changed", "negative")} <= set(kinds)


def test_thousands_of_rows_take_no_time(artifact: Path) -> None:
    rows = [{"path": f"../{n}", "bytes": 2**60, "sha256": ""} for n in range(20_000)]
    change_manifest(artifact, lambda manifest: manifest["files"].extend(rows))
    assert sum(kind == "unsafe" for kind, _ in found(artifact)) == 20_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        "[" * 100_000,
        '{"version": 99}',
        '{"version": true}',
        '{"digest": "\\ud800"}',
        " " * (MAX_MANIFEST_bytes + 1),
    ],
    ids=["empty", "no fields", "list", "null", "deep", "newer", "odd version", "surrogate", "large"],
)
def test_what_is_no_manifest_is_an_error_of_its_own(artifact: Path, text: str) -> None:
    (artifact / "manifest.json").write_text(text)
    with pytest.raises(ManifestUnreadable, match="version 99" if "99" in text else "manifest") as raised:
        verify(artifact)
    assert raised.value.remedy


def test_no_manifest_is_read_through_a_link(artifact: Path) -> None:
    (artifact / "manifest.json").rename(artifact.parent / "manifest.json")
    (artifact / "manifest.json").symlink_to(artifact.parent / "manifest.json")
    with pytest.raises(ManifestUnreadable):
        verify(artifact)


def test_an_artifact_of_version_1_is_checked_as_far_as_it_says(artifact: Path) -> None:
    later = ("part_of", "published_recipe_digest", "source_revision", "labelled_digest")
    later += ("lineage", "seed", "environment")

    def downgrade(manifest: dict[str, Any]) -> None:
        for name in later:
            del manifest[name]
        manifest["version"] = 1

    change_manifest(artifact / RESULT, downgrade)
    change_manifest(artifact, downgrade)
    fix_up(artifact, f"{RESULT}/manifest.json")
    assert read_manifest(artifact).version == 1
    assert found(artifact) == []
    (artifact / "model.safetensors").write_bytes(b"w" * 7000)
    assert found(artifact) == [("changed", "model.safetensors")]


def test_what_a_download_leaves_is_no_part_of_it(artifact: Path) -> None:
    (artifact / ".cache" / "huggingface").mkdir(parents=True)
    (artifact / ".cache" / "huggingface" / "x.metadata").write_text("etag")
    (artifact / ".gitattributes").write_text("*.safetensors filter=lfs")
    assert found(artifact) == []
    (artifact / "draft" / ".cache").mkdir()
    (artifact / "draft" / ".cache" / "x").write_text("")
    assert found(artifact) == [("extra", "draft/.cache/x")]


def test_progress_counts_bytes_up_to_all_of_them(artifact: Path) -> None:
    calls: list[tuple[int, int]] = []
    verify(artifact, lambda done, total: calls.append((done, total)))
    total = sum(file.bytes for file in read_manifest(artifact).files)
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_a_manifest_of_many_results_that_are_not_there_takes_no_time(artifact: Path) -> None:
    """Comparing every row with every finding took 24 s for as many."""
    rows = [{"path": f"also/{number}/manifest.json", "bytes": 1, "sha256": "0" * 64} for number in range(20_000)]
    change_manifest(artifact, lambda manifest: manifest["files"].extend(rows))
    before = time.process_time()
    kinds = [each.kind for each in verify(artifact)]
    assert time.process_time() - before < 6
    assert kinds == ["missing"] * len(rows)


def test_it_needs_no_torch(artifact: Path) -> None:
    code = "import sys, optcore.verify, optcore.signing; print([n for n in ('torch', 'numpy') if n in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


def test_a_manifest_is_the_same_for_the_same_folder(artifact: Path) -> None:
    before = (artifact / "manifest.json").read_bytes()
    (artifact / "manifest.json").unlink()
    write_manifest(artifact)
    assert (artifact / "manifest.json").read_bytes() == before
    assert json.loads(before)["version"] == 2


def test_files_published_apart_have_a_manifest_of_their_own(artifact: Path) -> None:
    whole = read_manifest(artifact)
    own = {file.path for file in whole.files if not file.path.startswith("also/")}
    part = whole.limited_to(own)
    assert (part.part_of, {file.path for file in part.files}) == (whole.digest, own)
    assert whole.limited_to({file.path for file in whole.files}) is whole
    part.save(artifact)
    for path in sorted((artifact / "also").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert found(artifact) == []
