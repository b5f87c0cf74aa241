"""A model held as a whole is measured or refused by what the machine and its groups can give, caches of files too."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.exporting import run_of

from optcore.errors import OutOfMemory
from optcore.evaluate import acceptance_stream, generation
from optcore.onnx import builder
from optcore.run import Run


def _builder(run: Run) -> str:
    try:
        builder._check_memory(run.checkpoint)
    except OutOfMemory as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("room", "cannot"),
    [(builder, _builder), (generation, generation._cannot), (acceptance_stream, acceptance_stream._cannot)],
    ids=["builder", "generation", "acceptance"],
)
def test_a_cache_of_files_is_room(
    room: object, cannot: Callable[[Run], str], stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(stdlib_model, stdlib_model, tmp_path / "out")
    run.target = "dense"
    asked = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: 0 if name == "SC_AVPHYS_PAGES" else asked(name))
    assert cannot(run) == ""
    monkeypatch.setattr(room, "machine_bytes", lambda: 1e6)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "whole" in cannot(run)
