"""Backup and restore by the commands of the documentation, while the service goes on."""

import hashlib
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from worker_service import OWNER, SECRET_KEY, Service

from api import lifecycle
from api.main import create_app
from api.settings import Settings
from api.store import credentials, keys
from lathe.local.binaries import find_postgres

pytestmark = pytest.mark.integration

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


@pytest.fixture(scope="module")
def commands() -> dict[str, list[str]]:
    """The lines to back up and to restore with, as people read them."""
    _, section = PAGE.read_text(encoding="utf-8").split("## Backup and restore")
    blocks = re.findall(r"^```shell\n(.*?)^```", section, re.M | re.S)
    return {"backup": blocks[0].splitlines(), "restore": blocks[1].splitlines()}


def _type(line: str, service: Service, backup: Path) -> None:
    named = {
        "BACKUP": str(backup),
        "LATHE_DATABASE_URL": service.database_url,
        "LATHE_DATA_DIR": str(service.data_dir),
        "PATH": f"{find_postgres().folder}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["sh", "-euc", line], env={**os.environ, **named}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{line}: {done.stderr}"


def _seen(service: Service, key: str, job_id: str) -> dict[str, Any]:
    """What a client sees of a job, its artifacts' bytes compared with their digests."""
    settings = Settings(database_url=service.database_url, data_dir=service.data_dir, secret_key=SECRET_KEY)
    with TestClient(create_app(settings), headers={"Authorization": f"Bearer {key}"}) as client:
        url = f"/v1/jobs/{job_id}"
        seen = {part or "job": client.get(f"{url}{part}").json() for part in ("", "/events", "/artifacts")}
        for file in seen["/artifacts"]["data"]:
            data = client.get(f"{url}/artifacts/{file['path']}").content
            assert hashlib.sha256(data).hexdigest() == file["sha256"]
    return seen


@pytest.fixture
def restored(empty_database_url: str, empty_redis_url: str, tmp_path: Path) -> Any:
    folder = tmp_path / "another-machine"
    (folder / "data").mkdir(parents=True)
    made = Service(empty_database_url, empty_redis_url, folder)
    yield made
    made.close()


def test_a_restored_service_is_the_one_that_was_backed_up(
    service: Service, restored: Service, commands: dict[str, list[str]], tmp_path: Path
) -> None:
    dump, copy = commands["backup"]
    backup = tmp_path / "backup"
    backup.mkdir()
    service.add_token("hf_of_the_owner")
    with service.sessions.begin() as session:
        _, key = keys.create(session, OWNER)
    service.start_relay()
    service.start_worker()
    done = [service.submit(seed=seed, wishes={"megabytes": 3}) for seed in (1, 2)]
    for job_id in done:
        service.await_status(job_id, "succeeded")
    service.kill("worker")
    waiting = service.submit(seed=3)
    before = {job_id: _seen(service, key, job_id) for job_id in done}
    assert all(len(seen["/artifacts"]["data"]) == 5 for seen in before.values())

    _type(dump, service, backup)
    service.start_worker()  # between the two lines a job ends, and one is deleted
    service.await_status(waiting, "succeeded")
    with service.sessions.begin() as session:
        lifecycle.delete(session, OWNER, done[0])
    _type(copy, service, backup)
    service.close()
    subprocess.run(["rm", "-r", service.data_dir], check=True)

    for line in commands["restore"]:
        _type(line, restored, backup)
    assert {job_id: _seen(restored, key, job_id) for job_id in done} == before
    with restored.sessions() as session:
        assert credentials.token(session, restored.vault, OWNER, "default") == "hf_of_the_owner"
    assert restored.job(waiting).status == "queued"
    restored.start_relay()
    restored.start_worker()
    assert restored.finish_soon(waiting).epoch == 1, "in the folder that the copy brought along"
    assert _seen(restored, key, waiting)["job"]["status"] == "succeeded"


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_bytes(b"x" * path.stat().st_size), lambda path: path.unlink()]
)
def test_the_comparison_fails_for_a_copy_that_is_not_whole(service: Service, spoil: Callable[[Path], None]) -> None:
    with service.sessions.begin() as session:
        _, key = keys.create(session, OWNER)
    service.start_relay()
    service.start_worker()
    job_id = service.submit()
    service.await_status(job_id, "succeeded")
    spoil(service.output(job_id) / "config.json")
    with pytest.raises(AssertionError):
        _seen(service, key, job_id)
