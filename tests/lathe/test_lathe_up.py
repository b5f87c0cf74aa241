"""A service on one machine from its start to its end: nothing stays behind, and the next one knows the old jobs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.waiting import until
from live import EMBEDDED, port_of, processes_of, recipe

import lathe
from lathe.local.stack import Stack

pytestmark = [pytest.mark.integration, pytest.mark.e2e]
PROGRAMS = ("api", "relay", "worker-gpu", "worker-cpu")


@pytest.fixture
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny").mkdir()
    return folder


def test_nothing_is_left_running_and_the_next_start_knows_the_old_jobs(tmp_path: Path, models: Path) -> None:
    environment = {**EMBEDDED, "LATHE_MODEL_ROOTS": str(models)}
    with Stack(tmp_path / "data", environment=environment) as stack:
        assert {program.name for program in stack.programs} == set(PROGRAMS)
        assert len(processes_of(tmp_path)) >= 6
        for name in ("secret_key", "api_key", "client.json"):
            assert (stack.data_dir / name).stat().st_mode & 0o777 == 0o600
        with pytest.raises(lathe.LatheError, match="another `lathe up` runs"), Stack(tmp_path / "data"):
            pass
        with pytest.raises(lathe.LatheError, match="cannot listen"), Stack(tmp_path / "other", port=port_of(stack)):
            pass
        with lathe.Client(stack.url, stack.api_key) as client:
            job_id = client.jobs.create(recipe()).id
            client.jobs.result(job_id, timeout=60)
        key = stack.api_key
    assert processes_of(tmp_path) == []
    assert not (tmp_path / "data/client.json").exists()
    with Stack(tmp_path / "data", environment=environment) as again, lathe.Client(again.url, again.api_key) as client:
        assert again.api_key == key
        assert client.jobs.get(job_id).status == "succeeded"
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_up_prints_where_and_takes_everything_with_it_however_it_ends(tmp_path: Path, number: signal.Signals) -> None:
    environment = {**os.environ, **EMBEDDED, "LATHE_HOME": str(tmp_path / "home")}
    up = [sys.executable, "-m", "lathe", "up", "--port", "0"]
    said = tmp_path / "stderr"
    with (
        said.open("w") as stderr,
        subprocess.Popen(up, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert all(lines), said.read_text()
        sign_in, url, key = (line.split()[-1] for line in lines)
        assert sign_in == f"{url}/sign-in#key={key}"
        with lathe.Client(url, key) as client:
            assert client.health().database
            assert list(client.jobs.list()) == []
        listed = subprocess.run([*up[:3], "ls"], env=environment, capture_output=True, text=True)
        assert listed.returncode == 0, listed.stderr
        process.send_signal(number)
        process.wait(60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    until(lambda: not processes_of(tmp_path), seconds=60)
