"""Jobs whose artifacts go to S3: through outages, orders and kills, whole and once."""

import hashlib
import signal
from pathlib import Path
from urllib.parse import urlsplit

import obstore
import pytest
from fixtures.hub import HubPeer
from fixtures.s3 import BUCKET, S3, SeaweedFS
from fixtures.waiting import until
from fixtures.wire import Wire
from worker_service import Hold, Service

from api.files import Bucket
from api.files.objects import BLOCK_bytes
from api.store.artifacts import ArtifactFile
from worker.artifact import BadArtifact
from worker.upload import Upload

pytestmark = pytest.mark.integration
PREFIX = "of-this/test"


def _use(service: Service, s3: S3, url: str | None = None) -> None:
    service.settings |= {"ARTIFACT_STORE": f"s3://{BUCKET}/{PREFIX}", "UPLOAD_PATIENCE_SECONDS": 120}
    service.environ |= s3.environ | ({"AWS_ENDPOINT_URL": url} if url else {})


def _stored(service: Service, s3: S3, job_id: str) -> None:
    """Each registered file is in the store under the epoch that won, byte for byte, and the job ended once."""
    job = service.job(job_id)
    rows = service.rows("SELECT path, bytes, sha256 FROM artifacts WHERE job_id = :id", id=job_id)
    assert {path for path, _, _ in rows} >= {"config.json", "manifest.json", "sub/a.txt"}
    for path, size, sha256 in rows:
        data = bytes(obstore.get(s3.client(PREFIX), f"{job_id}/{job.epoch}/{path}").bytes())
        assert (len(data), hashlib.sha256(data).hexdigest()) == (size, sha256)
    types = [event.type for event in service.events(job_id)]
    assert types.count("job.succeeded") == 1
    assert types[-1] == "job.succeeded"


def _staged(service: Service) -> list[Path]:
    return list((service.data_dir / "staging").glob("*"))


@pytest.fixture
def s3_of_mine(s3_server: SeaweedFS) -> S3:
    url = s3_server.folder.read_url()
    assert url is not None
    return S3(url)


def test_a_server_that_is_killed_in_the_middle_of_an_upload_delays_the_job(
    service: Service, s3_server: SeaweedFS, s3_of_mine: S3
) -> None:
    assert s3_server.process is not None
    victim = s3_server.process
    with Wire(urlsplit(s3_of_mine.url).port or 0) as wire:
        wire.on_sent = lambda sent: victim.kill() if sent > 20 << 20 else None
        _use(service, s3_of_mine, f"http://{wire.host}:{wire.port}")
        service.start_relay()
        service.start_worker()
        job_id = service.submit(wishes={"megabytes": 48})
        assert victim.wait(40) == -signal.SIGKILL
        until(lambda: "not in the store yet" in service.log("worker"), "the worker to notice")
        lease = service.job(job_id).lease_until
        until(lambda: (service.job(job_id).lease_until or lease) > lease, "the lease to be renewed meanwhile")
        assert service.job(job_id).status == "running"
        wire.on_sent = lambda sent: None
        s3_server.revive()
        job = service.await_status(job_id, "succeeded", timeout_seconds=120)
    assert (job.epoch, job.attempt) == (1, 1)
    _stored(service, s3_of_mine, job_id)
    log = service.log("worker")
    assert log.count("model.safetensors was sent") == 1
    assert log.count("config.json was sent") == 1, "what was there was not sent again"
    assert _staged(service) == []
    print(f"{wire.sent} bytes were sent for an artifact of 48 MiB")


def test_a_server_that_stays_away_costs_the_attempt_and_no_stage(
    service: Service, s3_server: SeaweedFS, s3_of_mine: S3
) -> None:
    _use(service, s3_of_mine)
    service.settings |= {"UPLOAD_PATIENCE_SECONDS": 0}
    s3_server.stop()
    service.start_relay()
    service.start_worker()
    job_id = service.submit()
    service.await_status(job_id, "queued")
    until(lambda: service.rows("SELECT 1 FROM attempts WHERE state = 'failed'"), "the attempt to fail", 60)
    [(failure, host)] = service.rows("SELECT failure, host FROM attempts WHERE epoch = 1")
    assert (failure["code"], failure["kind"], failure["retryable"]) == ("artifact_store_away", "infrastructure", True)
    until(lambda: not _staged(service), "the copy on this host to be removed")
    s3_server.start()
    job = service.finish_soon(job_id)
    assert job.epoch >= 2
    assert sorted(service.stage_runs()) == ["0-load", "1-ptq", "2-export"], "the engine's work was kept"
    assert service.rows("SELECT name FROM hosts WHERE quarantined_at IS NOT NULL") == [], f"{host} is not to blame"
    _stored(service, s3_of_mine, job_id)


def test_an_upload_stops_when_the_owner_cancels(service: Service, s3_server: SeaweedFS, s3_of_mine: S3) -> None:
    _use(service, s3_of_mine)
    hold = Hold.at(service.folder)
    service.start_relay()
    service.start_worker()
    job_id = service.submit(wishes={"hold": hold.path})
    hold.engine_pid()
    s3_server.stop()
    hold.release()
    until(lambda: "not in the store yet" in service.log("worker"), "the upload to wait")
    service.cancel(job_id)
    service.await_status(job_id, "cancelled")
    assert service.rows("SELECT path FROM artifacts") == []
    assert service.rows("SELECT prefix FROM removals") == [(f"{job_id}/1",)]


def test_a_killed_uploads_rest_is_removed_from_the_store_and_the_disk(service: Service, s3: S3) -> None:
    _use(service, s3)
    service.settings |= {"REMOVAL_DELAY_SECONDS": 0, "SWEEP_SECONDS": 0.5}
    with Wire(urlsplit(s3.url).port or 0) as wire:
        _use(service, s3, f"http://{wire.host}:{wire.port}")
        service.start_worker("first")
        service.start_relay()
        wire.on_sent = lambda sent: service.signal("first", signal.SIGKILL) if sent > 20 << 20 else None
        job_id = service.submit(wishes={"megabytes": 48})
        assert service.processes["first"].wait(40) == -signal.SIGKILL
        wire.on_sent = lambda sent: None
        assert _staged(service), "the output of the first attempt"
        service.lose_lease(job_id)
        service.start_worker()
        assert service.finish_soon(job_id).epoch == 2
    _stored(service, s3, job_id)
    until(lambda: not service.rows("SELECT 1 FROM removals"), "the reconciler")
    assert {name.split("/")[1] for name in s3.names(PREFIX) if name.startswith(job_id)} == {"2"}
    assert _staged(service) == []


@pytest.mark.parametrize("size", [100, BLOCK_bytes + 100])
def test_a_file_that_changed_after_the_engine_is_not_stored(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    for name, value in s3.environ.items():
        monkeypatch.setenv(name, value)
    bucket = Bucket(f"s3://{BUCKET}/{tmp_path.parent.name}/{size}", allow_http=True)
    upload = Upload(bucket, "job_a/1", patience_seconds=0, wait=lambda seconds: None)
    (tmp_path / "model").write_bytes(b"x" * size)
    with pytest.raises(BadArtifact, match="not what the engine wrote"):
        upload.run(tmp_path, [ArtifactFile("model", size, "0" * 64)])
    assert bucket.size_bytes("job_a/1/model") is None
    upload.run(tmp_path, [ArtifactFile("model", size, hashlib.sha256(b"x" * size).hexdigest())])
    assert bucket.size_bytes("job_a/1/model") == size


def test_a_file_that_changed_in_the_store_is_not_published(service: Service, s3: S3, hub: HubPeer) -> None:
    _use(service, s3)
    service.environ |= {"HF_ENDPOINT": hub.url}
    service.add_token(hub.environment["HF_TOKEN"])
    hub.put("me/kept", {"config.json": "{}"}, private=True)
    before = hub.api().model_info("me/kept").sha
    service.start_relay()
    service.start_worker(queues="gpu")
    job_id = service.submit(publish={"repo_id": "me/kept"})
    service.await_status(job_id, "succeeded")
    obstore.put(s3.client(PREFIX), f"{job_id}/1/sub/a.txt", b"b")
    service.start_worker("publisher", queues="cpu")
    until(lambda: service.job(job_id).publish_status == "failed", "the push to fail")
    failure = service.job(job_id).publish_failure
    assert failure is not None
    assert failure["code"] == "artifact_bad"
    assert "sub/a.txt has another SHA-256" in failure["message"]
    assert hub.api().model_info("me/kept").sha == before
    assert _staged(service) == []
