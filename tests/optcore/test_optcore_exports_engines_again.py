"""Engines that were not measured: for want of time or memory, which the next run tries again, or for good."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixtures.engine_runs import recipe_for, run_here

from optcore.serving.process import EngineStopped, run_engine
from optcore.serving.session import ServingTask

MEASURED = "3-evaluate"


def _ending(folder: Path, how: str) -> str:
    """A program in Python's place, of which every engine's process becomes one."""
    script = folder / "python"
    script.write_text(f"#!/bin/sh\n{how}\n")
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize(
    ("how", "said", "again"),
    [
        ("kill -KILL $$", "it was killed (SIGKILL), most often for memory", True),
        ("exit 1", "ended with status 1", False),
    ],
    ids=["killed", "refused"],
)
def test_only_an_engine_that_was_stopped_is_measured_by_the_next_run(
    how: str, said: str, again: bool, stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = {"evaluator": "engines", "prompt_tokens": 8, "new_tokens": 2, "samples": 1, "sequence_length": 16}
    ptq = {"technique": "ptq", "scheme": "q8_0", "rounding": "nearest"}
    document = recipe_for(
        stdlib_model, ptq, target={"format": "gguf"}, evaluate=[evaluator | {"source": False, "time_limit_seconds": 60}]
    )
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", _ending(tmp_path, how))
        first = run_here(document, tmp_path, "first")
    assert not any(first.cached.values())
    second, third = (run_here(document, tmp_path, name) for name in ("second", "third"))
    for ran, missed in ((first, True), (second, not again), (third, not again)):
        report = ran.report()
        assert any(said in notice for notice in report["notices"]) is missed
        assert [row["engine"] for row in report["engine_runs"]] == ([] if missed else ["llama.cpp"])
    done = {name: cached for name, cached in second.cached.items() if name not in ("0-fetch", MEASURED)}
    assert done
    assert all(done.values())
    assert (second.cached[MEASURED], third.cached[MEASURED]) == (not again, True)


@pytest.fixture
def task(tmp_path: Path) -> ServingTask:
    np.save(tmp_path / "tokens.npy", np.ones((1, 4), np.int64))
    return ServingTask("text-generation", str(tmp_path / "tokens.npy"), "", 4, 2, 1)


def _with_memory(folder: Path, kilobytes: int) -> str:
    return _ending(folder, f'ulimit -v {kilobytes}\nexec {sys.executable} "$@"')


def test_a_child_imports_nothing_for_which_there_may_be_no_memory() -> None:
    """What pydantic takes is more than an engine leaves, and would count as the engine's."""
    loaded = "import sys, optcore.serving.__main__; print(*sys.modules, sep='\\n')"
    names = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True).stdout.split()
    assert {name for name in names if name.startswith("optcore")} == {
        "optcore",
        "optcore.out_of_memory",
        "optcore.serving",
        *(f"optcore.serving.{room}" for room in ("__main__", "comparison", "memory", "serve", "session")),
    }
    assert not {"pydantic", "torch"} & set(names)


def test_llama_cpp_without_room_for_its_cache_was_stopped(
    served_gguf: Path, tmp_path: Path, task: ServingTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its functions answer with a null pointer alone; the cache of a million tokens is larger than what there is."""
    monkeypatch.setattr(sys, "executable", _with_memory(tmp_path, 500_000))
    with pytest.raises(EngineStopped, match="it ran out of memory"):
        run_engine("llama.cpp", served_gguf, task._replace(new_tokens=1 << 20), tmp_path, 60)
    assert run_engine("llama.cpp", served_gguf, task, tmp_path, 60).positions == 0, "as much is enough for a short one"
