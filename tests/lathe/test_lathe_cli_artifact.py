"""`lathe verify`, `lathe sign` and `lathe run --sign`: what they say, and what they exit with."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fixtures.artifacts import write_manifest
from fixtures.keys import Keys, MakeKeys
from scripted_server import page, scripted, status
from typer.testing import CliRunner

from lathe.cli import app
from optcore.manifest import SIGNATURE, read_manifest


def lathe(*arguments: object) -> Any:
    """The command in this process; standard output and standard error apart."""
    return CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "200"})


def test_verify_exits_with_0_1_or_2(artifact: Path, tmp_path: Path) -> None:
    good = lathe("verify", artifact)
    assert (good.exit_code, good.stdout) == (0, "")
    assert "every file is as the manifest says" in good.stderr
    assert "not signed" in good.stderr
    (artifact / "config.json").write_text("others")
    bad = lathe("verify", artifact)
    assert bad.exit_code == 1
    assert "config.json" in bad.stdout
    assert "changed" in bad.stdout
    none = lathe("verify", tmp_path)
    assert none.exit_code == 2
    assert "holds no manifest.json" in none.stderr
    assert "remedy: " in none.stderr


def test_verify_speaks_json(artifact: Path) -> None:
    (artifact / "config.json").unlink()
    told = json.loads(lathe("verify", artifact, "--json").stdout)
    assert (told["digest"], told["signature"]) == (read_manifest(artifact).digest, "none")
    assert [(row["kind"], row["path"]) for row in told["findings"]] == [("missing", "config.json")]


def test_verify_shows_hostile_names_as_text(artifact: Path) -> None:
    (artifact / "\x1b[31mred [bold]").write_text("")
    told = lathe("verify", artifact)
    assert told.exit_code == 1
    assert "\x1b" not in told.stdout
    assert "[bold]" in told.stdout


def test_a_signature_is_good_bad_or_not_checked(artifact: Path, keys: Keys, make_keys: MakeKeys) -> None:
    assert lathe("verify", artifact, "--key", keys.public).exit_code == 1, "one was asked for"
    assert lathe("sign", artifact, "--key", keys.private).exit_code == 0
    unchecked = lathe("verify", artifact)
    assert (unchecked.exit_code, "signed, not checked" in unchecked.stderr) == (0, True)
    good = lathe("verify", artifact, "--key", keys.public)
    assert (good.exit_code, "signed by the owner of this key" in good.stderr) == (0, True)
    bad = lathe("verify", artifact, "--key", make_keys().public)
    assert (bad.exit_code, "the signature does not hold" in bad.stderr) == (1, True)


def test_who_rewrites_the_manifest_still_lacks_the_key(artifact: Path, keys: Keys) -> None:
    lathe("sign", artifact, "--key", keys.private)
    signature = (artifact / SIGNATURE).read_bytes()
    for name in ("manifest.json", SIGNATURE):
        (artifact / name).unlink()
    (artifact / "model.safetensors").write_bytes(b"others")
    write_manifest(artifact)
    (artifact / SIGNATURE).write_bytes(signature)
    assert lathe("verify", artifact).exit_code == 0
    told = lathe("verify", artifact, "--key", keys.public)
    assert told.exit_code == 1
    assert "model.safetensors" in told.stdout


def test_a_key_that_is_none_is_an_error(artifact: Path, tmp_path: Path) -> None:
    for command in ("verify", "sign"):
        told = lathe(command, artifact, "--key", tmp_path / "absent.pem")
        assert told.exit_code == 1
        assert "cannot read the key" in told.stderr


def test_run_signs_what_it_made(
    recipe_file: Callable[..., Path], keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATHE_SIGNING_KEY", str(keys.private))
    out = tmp_path / "out"
    done = lathe("run", recipe_file(), "--out", out, "--work", tmp_path / "work", "--sign", keys.private)
    assert done.exit_code == 0, done.output
    assert lathe("verify", out, "--key", keys.public).exit_code == 0
    assert "LATHE_SIGNING_KEY" not in json.loads((out / "report.json").read_text())["environment"]


def test_run_asks_for_the_key_before_it_begins(recipe_file: Callable[..., Path], tmp_path: Path) -> None:
    done = lathe("run", recipe_file(), "--out", tmp_path / "out", "--sign", tmp_path / "absent.pem")
    assert done.exit_code == 1
    assert "cannot read the key" in done.stderr
    assert "1-ptq" not in done.stderr


def test_what_was_downloaded_can_be_verified(
    artifact: Path, keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lathe("sign", artifact, "--key", keys.private)
    files = {path.relative_to(artifact).as_posix(): path for path in artifact.rglob("*") if path.is_file()}
    listed = "GET /v1/jobs/job_1/artifacts"
    with scripted() as script:
        monkeypatch.setenv("LATHE_URL", script.url)
        monkeypatch.setenv("LATHE_API_KEY", "lk_x")
        rows = []
        for name, path in files.items():
            data = path.read_bytes()
            rows.append({"path": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
            script.on(f"{listed}/{name}", status(200, data))
        script.on(listed, status(200, page(*rows)))
        assert lathe("download", "job_1", "--out", tmp_path / "copy").exit_code == 0
    assert lathe("verify", tmp_path / "copy", "--key", keys.public).exit_code == 0
