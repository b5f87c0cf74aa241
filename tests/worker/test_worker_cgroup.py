"""Control groups of engines, where this machine lets us make them."""

import queue
import resource
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.waiting import until
from worker_service import is_running

from worker import cgroup, kernel
from worker.cgroup import Cgroup
from worker.confinement import Confinement, confined
from worker.engine_environment import run_environment
from worker.engine_log import EngineLog
from worker.engine_process import EngineProcess, Exited
from worker.settings import WorkerSettings

MIB = 2**20
EAT = "b = []\nwhile True: b.append(bytearray(1 << 20))"


@pytest.fixture
def delegated() -> Iterator[Path]:
    """A group of our own to make groups in, as systemd would hand to a worker."""
    own = cgroup.own_folder()
    if own is None:
        pytest.skip("no cgroup v2 hierarchy is mounted here")
    folder = own / f"lathe-test-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    if not (folder / "cgroup.kill").exists():
        folder.rmdir()
        pytest.skip("this kernel cannot kill a cgroup")
    yield folder
    folder.rmdir()


@pytest.fixture
def memory(delegated: Path) -> Path:
    """The same, with the controllers for memory and processes."""
    missing = {"memory", "pids"} - set((delegated / "cgroup.controllers").read_text().split())
    if missing:
        pytest.skip(f"cgroup v2 has no controller {', '.join(sorted(missing))} here (version 1 has it)")
    return delegated


def _settings(monkeypatch: pytest.MonkeyPatch, folder: Path, parent: Path, **more: object) -> WorkerSettings:
    named = {"DATABASE_URL": "postgresql://u@127.0.0.1/d", "DATA_DIR": folder, "SECRET_KEY": "k" * 40}
    for name, value in {**named, "ENGINE_CGROUP": parent, **more}.items():
        monkeypatch.setenv(f"LATHE_{name}", str(value))
    return WorkerSettings()  # type: ignore[call-arg]


def _end_of(script: str, confinement: Confinement, log_file: Path) -> Exited:
    inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
    with EngineLog(log_file, limit_bytes=10_000) as log:
        command, environment = [sys.executable, "-c", script], run_environment(log_file.parent)
        EngineProcess(command, environment=environment, engine_log=log, inbox=inbox, confinement=confinement)
        ended = inbox.get(timeout=60)
    assert isinstance(ended, Exited), ended
    return ended


def test_what_leaves_the_tree_does_not_leave_the_group(
    delegated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon whose leash was killed has neither parent nor session in common with the engine."""
    script = (
        "import os, subprocess, sys\n"
        "daemon = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(daemon.pid))\n"
        "os.kill(os.getppid(), 9)"
    )
    with confined(_settings(monkeypatch, tmp_path, delegated), (), tmp_path) as confinement:
        assert confinement.cgroup
        assert _end_of(script, confinement, tmp_path / "log").returncode == -signal.SIGKILL
        pid = int((tmp_path / "pid").read_text())
        until(lambda: not is_running(pid), "the daemon to die")
    assert not list(delegated.glob("lathe-*"))


def test_groups_of_a_killed_worker_are_removed(delegated: Path) -> None:
    left = Cgroup(delegated, "lathe-1-1")
    with subprocess.Popen(["sleep", "600"]) as process:
        (left.folder / "cgroup.procs").write_text(str(process.pid))
        Cgroup(delegated, "lathe-1-2").remove()
        assert left.folder.exists(), "it still has a process"
        left.kill()
    later = Cgroup(delegated, "lathe-1-3")
    assert [path.name for path in delegated.glob("lathe-*")] == ["lathe-1-3"]
    later.remove()


def test_a_group_that_cannot_be_made_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _settings(monkeypatch, tmp_path, tmp_path / "absent", ENGINE_MEMORY_BYTES=2**30)
    with confined(settings, (), tmp_path) as confinement:
        assert confinement.cgroup is None
        assert confinement.limits["RLIMIT_AS"] == 2**30
        ended = _end_of("bytearray(2 ** 31)", confinement, tmp_path / "log")
        assert "MemoryError" in (tmp_path / "log").read_text()
        seen = confinement.memory(ended.peak_memory_bytes)
    assert (ended.returncode, seen.oom_killed, seen.limit_bytes) == (1, False, 2**30)
    own_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 0 < seen.peak_bytes < max(2**30, own_bytes + 2**20), "the kernel starts a child with its parent's peak"


def test_the_kernel_ends_what_takes_too_much_and_says_so(
    memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(monkeypatch, tmp_path, memory, ENGINE_MEMORY_BYTES=64 * MIB)
    with confined(settings, (), tmp_path) as confinement:
        assert "RLIMIT_AS" not in confinement.limits
        ended = _end_of(EAT, confinement, tmp_path / "log")
        seen = confinement.memory(ended.peak_memory_bytes)
    print(f"ended by {ended.returncode}, {seen}")
    assert ended.returncode == -signal.SIGKILL
    assert (seen.oom_killed, seen.limit_bytes) == (True, 64 * MIB)
    assert 32 * MIB < seen.peak_bytes <= 64 * MIB


def test_processes_have_an_end(memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import subprocess\nfor _ in range(99): subprocess.Popen(['sleep', '600'])"
    with confined(_settings(monkeypatch, tmp_path, memory, ENGINE_PROCESSES=16), (), tmp_path) as confinement:
        assert _end_of(script, confinement, tmp_path / "log").returncode == 1
    assert "Resource temporarily unavailable" in (tmp_path / "log").read_text()


def test_the_machine_is_asked_when_the_group_does_not_count() -> None:
    assert not kernel.OomCounter().has_risen
