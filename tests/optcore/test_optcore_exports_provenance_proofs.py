"""Issue 8, acceptance 6: `lathe verify` catches a flipped bit, a missing file, an edited recipe, a wrong signature."""

import os
import shutil
import time
from pathlib import Path

import pytest
from fixtures.artifacts import write_manifest
from fixtures.keys import Keys, MakeKeys
from typer.testing import CliRunner

from lathe.cli import app
from optcore.manifest import SIGNATURE, read_manifest
from optcore.verify import verify

pytestmark = pytest.mark.proof


@pytest.fixture
def signed(artifact: Path, stdlib_model: Path, keys: Keys) -> Path:
    """An artifact with the shipped model's weights."""
    (artifact / "manifest.json").unlink()
    for path in stdlib_model.glob("*.*"):
        shutil.copyfile(path, artifact / path.name)
    write_manifest(artifact)
    assert CliRunner().invoke(app, ["sign", str(artifact), "--key", str(keys.private)]).exit_code == 0
    return artifact


def _flip(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def _edit(folder: Path) -> None:
    """The recipe, and the manifest with it: its hash is right again."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("int4", "int8"))
    digest = read_manifest(folder).published_recipe_digest
    (folder / "manifest.json").unlink()
    (folder / SIGNATURE).rename(folder.parent / SIGNATURE)
    write_manifest(folder, published_recipe_digest=digest)
    (folder.parent / SIGNATURE).rename(folder / SIGNATURE)


def test_everything_that_was_changed_is_caught(signed: Path, keys: Keys, make_keys: MakeKeys, tmp_path: Path) -> None:
    changes = {
        "nothing": lambda folder: None,
        "one flipped bit": _flip,
        "a missing file": lambda folder: (folder / "config.json").unlink(),
        "an extra file": lambda folder: (folder / "modeling.py").write_text("import os"),
        "an edited recipe, its hash fixed": _edit,
        "a signature of nothing": lambda folder: (folder / SIGNATURE).write_text("{}"),
    }
    print()
    for number, (name, change) in enumerate(changes.items()):
        folder = shutil.copytree(signed, tmp_path / str(number))
        change(folder)
        ended = CliRunner().invoke(app, ["verify", str(folder), "--key", str(keys.public)], env={"COLUMNS": "200"})
        found = " | ".join(" ".join(line.split())[:90] for line in ended.stdout.splitlines()[1:])
        print(f"{name}: exit {ended.exit_code}  {found}")
        assert ended.exit_code == (0 if name == "nothing" else 1)
    stranger = CliRunner().invoke(app, ["verify", str(signed), "--key", str(make_keys().public)])
    print(f"another's key: exit {stranger.exit_code}")
    assert stranger.exit_code == 1


def test_a_large_file_is_never_in_memory_as_a_whole(artifact: Path) -> None:
    import tracemalloc

    size = 256 * 2**20
    with (artifact / "model.safetensors").open("wb") as file:
        for _ in range(16):
            file.write(os.urandom(size // 16))
    (artifact / "manifest.json").unlink()
    write_manifest(artifact)
    started = time.perf_counter()
    assert verify(artifact) == ()
    seconds = time.perf_counter() - started
    tracemalloc.start()
    assert verify(artifact) == ()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"\n256 MiB verified at {size / seconds / 1e6:.0f} MB/s; peak of Python's memory {peak / 2**20:.1f} MiB")
    assert peak < 16 * 2**20
