"""The leash between worker and engine: what dies with whom, who holds a GPU, what an engine may not do."""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
import yaml
from fixtures.waiting import until
from worker_service import is_running

from worker import leash
from worker.confinement import Confinement
from worker.watchdog import FRAMES, last_frames

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def _tied(command: list[str], confinement: Confinement | None = None, parent: int | None = None) -> list[str]:
    terms = (confinement or Confinement()).terms
    return [sys.executable, "-I", "-S", leash.__file__, str(parent or os.getpid()), terms, *command]


@contextmanager
def _worker(engine: list[str], log: IO[bytes] | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that starts an engine as a worker does, and waits."""
    tied = repr(_tied(engine)).replace(repr(str(os.getpid())), "str(os.getpid())")
    script = f"import os, subprocess, time; subprocess.Popen({tied}); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=log) as worker:
        try:
            yield worker
        finally:
            worker.kill()


def _below(pid: int) -> list[int]:
    """The processes below one, nearest first."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                found += map(int, children.read_text().split())
    return found[1:]


def _catches(pid: int, number: signal.Signals) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(caught >> (number - 1) & 1)


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


@pytest.fixture
def conducted(tmp_path: Path, stdlib_model: Path) -> Iterator[dict[str, int]]:
    """A worker that runs the real engine, held in a stage."""
    document = {
        "model": {"path": str(stdlib_model.absolute())},
        "calibration": {"dataset": "python-stdlib", "samples": 4, "sequence_length": 64},
        "chain": [{"technique": "ptq", "scheme": "nvfp4"}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    engine = [sys.executable, "-m", "optcore", "run", str(tmp_path / "recipe.yaml"), *folders]
    with (tmp_path / "stderr").open("wb") as log, _worker(engine, log) as worker:
        stage = until(
            lambda: next((pid for pid in _below(worker.pid) if "stage" in _words(pid)), 0), "a stage of the engine"
        )
        os.kill(stage, signal.SIGSTOP)
        tied, conductor = _below(worker.pid)[:2]
        yield {"worker": worker.pid, "leash": tied, "conductor": conductor, "stage": stage}


@pytest.mark.parametrize("victim", ["worker", "leash", "conductor"])
def test_a_stage_dies_with_each_of_its_ancestors(conducted: dict[str, int], victim: str) -> None:
    os.kill(conducted[victim], signal.SIGKILL)
    until(lambda: not is_running(conducted["stage"]), f"the stage to die with the {victim}")
    until(lambda: not is_running(conducted["conductor"]), "the conductor to die too")


def test_conductor_and_stage_say_where_they_are(conducted: dict[str, int], tmp_path: Path) -> None:
    """What a supervisor asks of an engine that hangs."""
    pids = (conducted["conductor"], conducted["stage"])
    os.kill(conducted["stage"], signal.SIGCONT)
    until(lambda: all(_catches(pid, signal.SIGUSR1) for pid in pids), "both to be ready for the question")
    log = tmp_path / "stderr"
    # A dump is written piece by piece, the innermost frame first: the last one says that it is whole, or dots say that
    # there are more than a dump holds, as in the middle of an import. Two at once would write into each other's lines.
    whole = re.compile(r"in _run_module_as_main$|^  \.\.\.$", re.M)
    for number, pid in enumerate(pids, start=1):
        os.kill(pid, signal.SIGUSR1)
        until(lambda answers=number: len(whole.findall(log.read_text())) == answers, "its answer")
    frames = last_frames(log.read_text().splitlines())
    assert "in _relay" in frames
    assert "optcore/conductor.py" in frames
    assert len(frames.splitlines()) > FRAMES, "those of the stage, too"


@pytest.mark.parametrize("end", ["the worker dies", "the worker hangs up", "the engine ends"])
def test_a_rank_in_a_session_of_its_own_does_not_survive(end: str, tmp_path: Path) -> None:
    rank = f"pid = subprocess.Popen({SLEEP!r}, start_new_session=True).pid"
    note = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(pid))"
    stay = "" if end == "the engine ends" else "; import time; time.sleep(600)"
    engine = [sys.executable, "-c", f"import subprocess; {rank}; {note}{stay}"]
    with _worker(engine) as worker:
        pid = until(lambda: (tmp_path / "pid").exists() and int((tmp_path / "pid").read_text() or 0), "the rank")
        if end == "the worker hangs up":
            os.kill(_below(worker.pid)[0], signal.SIGHUP)
        elif end == "the worker dies":
            worker.kill()
        until(lambda: not is_running(pid), "the rank to die")


def test_an_orphan_does_not_start(tmp_path: Path) -> None:
    command = _tied(["touch", str(tmp_path / "touched")], parent=os.getpid() + 1)
    assert subprocess.run(command, check=False).returncode == leash.ORPHANED
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("raise SystemExit(3)", 3),
        ("import os; os.abort()", -signal.SIGABRT),
        ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
    ],
)
def test_it_ends_as_the_engine_ended(script: str, status: int) -> None:
    assert subprocess.run(_tied([sys.executable, "-c", script]), check=False).returncode == status


def test_a_command_that_is_not_there_is_said() -> None:
    ended = subprocess.run(_tied(["no-such-engine"]), capture_output=True, text=True, check=False)
    assert ended.returncode == 127
    assert "no-such-engine" in ended.stderr


def test_sigterm_is_for_the_engine(tmp_path: Path) -> None:
    script = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7));"
        "print('ready', flush=True); time.sleep(600)"
    )
    command = _tied([sys.executable, "-c", script])
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as tied:
        assert tied.stdout
        tied.stdout.readline()
        os.killpg(tied.pid, signal.SIGTERM)
        assert tied.wait(20) == 7


def test_a_gpu_is_one_engines_at_a_time_and_kept_by_what_outlives_it(tmp_path: Path) -> None:
    held = Confinement(locks=(tmp_path / "GPU-1.lock",), lock_seconds=0.3)
    leave = f"subprocess.Popen({SLEEP!r}, close_fds=False); print('ready', flush=True); time.sleep(600)"
    engine = _tied([sys.executable, "-c", f"import subprocess, time; {leave}"], held)
    with subprocess.Popen(engine, stdout=subprocess.PIPE) as first:
        assert first.stdout
        first.stdout.readline()
        conductor, rest = _below(first.pid)
        refused = subprocess.run(_tied(["true"], held), capture_output=True, text=True, check=False)
        assert (refused.returncode, "GPU-1.lock" in refused.stderr) == (leash.GPU_BUSY, True)
        first.kill()
        first.wait()
        until(lambda: not is_running(conductor), "the conductor to die with its leash")
        assert is_running(rest)
        assert subprocess.run(_tied(["true"], held), check=False, capture_output=True).returncode == leash.GPU_BUSY
        os.kill(rest, signal.SIGKILL)
    later = replace(held, lock_seconds=20)
    assert subprocess.run(_tied(["true"], later), check=False).returncode == 0


def test_an_engine_has_its_limits_and_nothing_of_the_worker(tmp_path: Path) -> None:
    look = (
        "import json, os, resource; status = open('/proc/self/status').read();"
        "print(json.dumps([resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE),"
        "'NoNewPrivs:\\t1' in status, int(open('/proc/self/oom_score_adj').read()) > 0, os.umask(0),"
        "len(os.listdir('/proc/self/fd'))]))"
    )
    with (tmp_path / "secret").open("w") as secret:
        fcntl.fcntl(secret, fcntl.F_SETFD, 0)
        command = _tied([sys.executable, "-c", look], Confinement(limits={"RLIMIT_NOFILE": 99}))
        said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
    assert json.loads(said) == [[99, 99], [0, 0], True, True, 0o077, 4]  # three streams, and the folder that is read
