"""More than one host: workers that share a database, a broker and a bucket, and no disk."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from fixtures.hub import HubPeer
from fixtures.netns import NetworkHost, network_host
from fixtures.s3 import BUCKET, S3
from fixtures.waiting import until
from worker_service import OWNER, SECRET_KEY, Hold, Service

from api.main import create_app
from api.settings import Settings
from api.store import keys

pytestmark = pytest.mark.integration


@dataclass
class Fleet:
    """A relay and an API on this host, and workers on two others."""

    service: Service
    s3: S3
    hub: HubPeer
    hosts: dict[str, NetworkHost | None]
    """None for one that is only a disk of its own."""

    def start_worker(self, name: str, queues: str) -> None:
        """A worker with a disk of its own, which it calls by the same settings as the others."""
        here, host = self.service, self.hosts[name]
        urls = {"DATABASE_URL": here.database_url, "REDIS_URL": here.redis_url}
        before = here.settings, here.environ
        here.settings = here.settings | {"DATA_DIR": here.folder / f"disk-of-{name}"}
        more = {"AWS_ENDPOINT_URL": self.s3.url, "HF_ENDPOINT": self.hub.url}
        lead, here.launcher = (host.lead, host.launcher) if host else (str, ())
        here.settings |= {setting: lead(url) for setting, url in urls.items()}
        here.environ = here.environ | {variable: lead(url) for variable, url in more.items()}
        try:
            here.start_worker(name, queues=queues)
        finally:
            here.launcher, (here.settings, here.environ) = (), before

    @property
    def store(self) -> str:
        return f"s3://{BUCKET}/{self.service.folder.name}"


@pytest.fixture(params=["disks", "disks and networks"])
def fleet(request: pytest.FixtureRequest, service: Service, s3: S3, hub: HubPeer) -> Iterator[Fleet]:
    with ExitStack() as stack:
        hosts: dict[str, NetworkHost | None] = {"alder": None, "birch": None}
        if request.param == "disks and networks":
            try:
                hosts = {name: stack.enter_context(network_host(name, i)) for i, name in enumerate(hosts, 1)}
            except PermissionError as error:
                pytest.skip(f"no network namespaces here: {error}")
        made = Fleet(service, s3, hub, hosts)
        service.settings |= {"ARTIFACT_STORE": made.store}
        service.environ |= s3.environ
        yield made
        service.close()


@pytest.fixture
def api(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """An API whose disk holds nothing."""
    for name, value in fleet.s3.environ.items():
        monkeypatch.setenv(name, value)
    settings = Settings(
        database_url=fleet.service.database_url,
        data_dir=tmp_path / "disk-of-api",
        secret_key=SECRET_KEY,
        artifact_store=fleet.store,
    )
    with fleet.service.sessions.begin() as session:
        _, key = keys.create(session, OWNER)
    with TestClient(create_app(settings), headers={"Authorization": f"Bearer {key}"}) as client:
        yield client


def test_jobs_run_on_any_host_and_are_read_and_published_from_any_other(fleet: Fleet, api: TestClient) -> None:
    service, hub = fleet.service, fleet.hub
    service.add_token(hub.environment["HF_TOKEN"])
    service.start_relay()
    fleet.start_worker("alder", "gpu")
    fleet.start_worker("birch", "gpu,cpu")
    holds = [Hold.at(service.folder) for _ in range(2)]
    ids = [
        service.submit(wishes={"hold": hold.path, "megabytes": 12}, seed=i, publish={"repo_id": f"me/result-{i}"})
        for i, hold in enumerate(holds)
    ]
    for hold in holds:
        hold.engine_pid()  # both at one time, so on both hosts
        hold.release()
    for job_id in ids:
        service.await_status(job_id, "succeeded", timeout_seconds=60)
    rows = service.rows("SELECT job_id, worker_id, host FROM attempts")
    assert len({worker_id for _, worker_id, _ in rows}) == len(rows) == 2
    assert not fleet.hosts["alder"] or sorted(host for _, _, host in rows) == ["alder", "birch"]

    for i, job_id in enumerate(ids):
        for file in api.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]:
            data = api.get(f"/v1/jobs/{job_id}/artifacts/{file['path']}").content
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
        until(lambda id=job_id: service.job(id).publish_status in ("published", "failed"), "the push", 60)
        job = service.job(job_id)
        assert job.publish_failure is None
        assert not fleet.hosts["birch"] or job.publish_worker_id.startswith("birch:")
        names = {
            entry.rfilename for entry in hub.api().model_info(f"me/result-{i}", revision=job.publish_commit).siblings
        }
        assert names >= {"config.json", "manifest.json", "model.safetensors"}

    left = [path for disk in service.folder.glob("disk-of-*") for path in (disk / "staging").glob("*")]
    assert left == []
    assert not [path for disk in service.folder.glob("disk-of-*") for path in (disk / "artifacts").rglob("*")]
    print(f"jobs ran on {rows}, were read by an API with an empty disk, and pushed by {job.publish_worker_id}")
