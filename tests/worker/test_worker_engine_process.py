"""The child process and what surrounds it: signals, pipes, the environment, the log, the journal."""

import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.waiting import until
from worker_service import is_running

from optcore.events import Metric, Notice, Progress
from worker.confinement import Confinement
from worker.engine_environment import fetch_environment, run_environment
from worker.engine_log import EngineLog
from worker.engine_process import EngineProcess, Exited, Inbox, Said
from worker.journal import LIMIT, Journal


@pytest.fixture
def engine_log(tmp_path: Path) -> Iterator[EngineLog]:
    with EngineLog(tmp_path / "engine.log", limit_bytes=10_000) as log:
        yield log


def _start(script: str, log: EngineLog, inbox: Inbox) -> EngineProcess:
    command, environment = [sys.executable, "-c", script], run_environment(Path("/nowhere"))
    return EngineProcess(command, environment=environment, engine_log=log, inbox=inbox, confinement=Confinement())


def _until_exit(inbox: Inbox) -> tuple[list[object], int]:
    said: list[object] = []
    while True:
        match inbox.get(timeout=20):
            case Said(event):
                said.append(event)
            case Exited(returncode):
                return said, returncode


def test_events_come_before_the_end_and_junk_goes_to_the_log(tmp_path: Path, engine_log: EngineLog) -> None:
    notice = '{"event": "notice", "stage": "s", "message": "m"}'
    inbox: Inbox = queue.SimpleQueue()
    _start(f"print('{notice}'); print('hello'); print('[]' * 9); raise SystemExit(3)", engine_log, inbox)
    said, returncode = _until_exit(inbox)
    assert said == [Notice(stage="s", message="m")]
    assert returncode == 3
    assert "not an event: hello\n" in (tmp_path / "engine.log").read_text()


def test_nothing_of_the_group_survives_the_child(tmp_path: Path, engine_log: EngineLog) -> None:
    """A grandchild that keeps the pipes open neither lives on nor holds the end back."""
    inbox: Inbox = queue.SimpleQueue()
    grandchild = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    _start(f"{grandchild}; open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid))", engine_log, inbox)
    _, returncode = _until_exit(inbox)
    assert returncode == 0
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not is_running(pid), "the grandchild to die")


def test_signals_after_the_end_go_nowhere(engine_log: EngineLog) -> None:
    inbox: Inbox = queue.SimpleQueue()
    process = _start("pass", engine_log, inbox)
    _until_exit(inbox)
    process.terminate()
    process.kill()
    assert not is_running(process.pid)


def test_the_environment_is_what_we_allow() -> None:
    host = {
        "PATH": "/bin",
        "HOME": "/operator",
        "HF_HUB_CACHE": "/operator/hub",
        "TRITON_CACHE_DIR": "/operator/triton",
        "CUDA_VISIBLE_DEVICES": "1",
        "HF_ENDPOINT": "http://hub.example",
        "HF_TOKEN": "hf_operator",
        "HUGGING_FACE_HUB_TOKEN": "hf_operator",
        "LATHE_DATABASE_URL": "postgresql://u:pw@h/d",
        "PGPASSWORD": "pw",
        "AWS_SECRET_ACCESS_KEY": "s3",
        "https_proxy": "http://user:pw@proxy:1",
    }
    work = Path("work") / "1"
    run = run_environment(work, host)
    assert {name: run[name] for name in ("PATH", "CUDA_VISIBLE_DEVICES", "HF_ENDPOINT")}
    assert not {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "LATHE_DATABASE_URL", "PGPASSWORD", "https_proxy"} & set(run)
    assert "AWS_SECRET_ACCESS_KEY" not in run
    assert "/operator" not in str(run)
    assert (run["HOME"], run["TRITON_CACHE_DIR"]) == (f"{work}/home", f"{work}/cache/triton")
    assert run["HF_TOKEN_PATH"] == os.devnull
    fetch = fetch_environment(work, "hf_owner", host)
    assert fetch["HF_TOKEN"] == "hf_owner"
    assert fetch["https_proxy"] == host["https_proxy"]
    assert "HF_TOKEN" not in fetch_environment(work, None, host)


@pytest.mark.parametrize(("keep", "status"), [("keep_secrets()", 13), ("make_readable()", 0)])
def test_a_child_of_the_same_account_cannot_read_its_workers_environment(keep: str, status: int) -> None:
    """As an account that is not root, which reads everything. Changing to it hides a process too: hence the second."""
    script = (
        "import ctypes, os, sys; from worker.secrecy import keep_secrets\n"
        "make_readable = lambda: ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"
        f"os.geteuid() or os.setuid(65534); {keep}\n"
        "if not os.fork():\n"
        "    try: open(f'/proc/{os.getppid()}/environ').read(); os._exit(0)\n"
        "    except PermissionError: os._exit(13)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == status


def test_the_log_is_bounded_keeps_its_end_and_blanks_secrets(tmp_path: Path) -> None:
    path = tmp_path / "a" / "engine.log"
    with EngineLog(path, limit_bytes=1000, secrets=["hf_secret", ""]) as log:
        for number in range(1000):
            log.write(b"line %d hf_secret \xff\n" % number)
    text = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(text) < 3000
    assert "hf_secret" not in text
    assert text.startswith("line 0 [secret] \ufffd\n")
    assert text.endswith("line 999 [secret] \ufffd\n")
    assert "bytes left out" in text
    assert log.tail(2).splitlines() == ["line 998 [secret] \ufffd", "line 999 [secret] \ufffd"]


def test_a_disk_that_is_full_does_not_stop_the_listening(tmp_path: Path) -> None:
    (tmp_path / "engine.log").symlink_to("/dev/full")
    with EngineLog(tmp_path / "engine.log", limit_bytes=1000, news_limit_bytes=1000) as log:
        log.write(b"the last words\n")
        assert log.tail() == "the last words"
        assert log.take_news() == "the last words\n"


def _progress(done: int, phase: str = "loading") -> Progress:
    return Progress.model_validate({"stage": "s", "phase": phase, "done": done, "total": 9})


def test_the_journal_keeps_order_and_only_the_last_progress() -> None:
    journal = Journal()
    notice = Notice(stage="s", message="m")
    for event in (_progress(1), _progress(2), notice, _progress(3), _progress(4), _progress(1, "packing")):
        journal.add(event)
    assert journal.batch() == (_progress(2), notice, _progress(4), _progress(1, "packing"))
    journal.written(2)
    assert journal.batch() == (_progress(4), _progress(1, "packing"))


@pytest.mark.parametrize(("event", "kept"), [(Metric(stage="s", name="loss", value=1.0), False), (_progress(1), False)])
def test_a_full_journal_lets_numbers_go_and_nothing_else(event: Metric | Progress, kept: bool) -> None:
    journal = Journal()
    notice = Notice(stage="s", message="m")
    for _ in range(LIMIT):
        journal.add(notice)
    journal.add(event)
    assert (len(journal) > LIMIT) is kept
    journal.add(notice)
    assert len(journal) == LIMIT + 1
