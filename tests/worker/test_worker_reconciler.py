"""The reconciler's clock, and what it sweeps away."""

from pathlib import Path

import pytest
from worker_service import OWNER, SECRET_KEY, Service

from api import lifecycle
from api.files import Bucket, Folder
from worker.reconciler import Reconciler
from worker.removals import Removals
from worker.settings import WorkerSettings
from worker.staging import Staging

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(service: Service) -> WorkerSettings:
    return WorkerSettings(
        database_url=service.database_url,
        data_dir=service.data_dir,
        secret_key=SECRET_KEY,
        reconcile_seconds=10,
        lease_amnesty_seconds=60,
    )


def _lost_job(service: Service) -> str:
    """A job whose worker is silent for longer than its lease."""
    job_id = service.submit()
    with service.sessions.begin() as session:
        assert lifecycle.claim(session, job_id, "lost-worker")
    service.lose_lease(job_id)
    return job_id


def test_after_an_outage_every_lease_gets_one_term(service: Service, settings: WorkerSettings) -> None:
    times = iter((1000.0, 1030.0, 1059.0, 1070.0, 1100.0, 1129.0, 1140.0))
    reconciler = Reconciler(settings, service.sessions, clock=lambda: next(times))
    job_id = _lost_job(service)
    for _ in range(3):
        reconciler.tick()
    assert service.job(job_id).status == "running"
    reconciler.database_was_away()
    for _ in range(3):
        reconciler.tick()
    assert service.job(job_id).status == "running"
    reconciler.tick()
    assert service.job(job_id).status == "queued"


def test_it_acts_once_a_period(service: Service, settings: WorkerSettings) -> None:
    times = iter((0.0, 9.0, 10.0))
    reconciler = Reconciler(settings, service.sessions, clock=lambda: next(times))
    reconciler.tick()
    job_id = service.submit()
    service.rows("UPDATE jobs SET wake_at = now() - interval '1 second'")
    service.rows("UPDATE outbox SET published_at = now()")
    reconciler.tick()
    assert not service.rows("SELECT 1 FROM outbox WHERE published_at IS NULL")
    reconciler.tick()
    [(payload,)] = service.rows("SELECT payload FROM outbox WHERE published_at IS NULL")
    assert payload == {"job_id": job_id}


def test_what_lost_attempts_and_deleted_jobs_left_goes_when_its_time_is_over(
    service: Service, settings: WorkerSettings
) -> None:
    kept_epoch, deleted, store = _lost_job(service), service.submit(), Folder(settings.artifacts_dir)
    with service.sessions.begin() as session:
        assert lifecycle.expire_leases(session) == 1
    service.hurry(kept_epoch)
    with service.sessions.begin() as session:
        assert lifecycle.claim(session, kept_epoch, "second")
    service.cancel(deleted)
    with service.sessions.begin() as session:
        lifecycle.delete(session, OWNER, deleted)
    kept = [store.root / name for name in (f"{kept_epoch}/2", f"{kept_epoch}/2.part-1", f"{kept_epoch}/12", "job_x/1")]
    gone = [store.root / name for name in (f"{kept_epoch}/1", f"{kept_epoch}/1.part-1", f"{deleted}/1")]
    for path in [*kept, *gone]:
        path.mkdir(parents=True)
        (path / "file").touch()
    assert Removals(store, service.sessions, delay_seconds=60).carry_out() == 0
    service.rows("UPDATE removals SET created_at = created_at - interval '61 seconds'")
    assert Removals(store, service.sessions, delay_seconds=60).carry_out() == 2
    assert [path for path in [*kept, *gone] if path.exists()] == kept
    assert service.rows("SELECT prefix FROM removals") == []


def test_a_removal_that_fails_is_put_off(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service.rows("INSERT INTO removals VALUES ('job_a', now() - interval '2 hours'), ('job_b/1', now())")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    removals = Removals(Bucket("s3://bucket", allow_http=True), service.sessions, delay_seconds=0)
    assert removals.carry_out() == 0
    assert service.rows("SELECT prefix FROM removals ORDER BY created_at") == [("job_b/1",), ("job_a",)]
    assert Removals(Folder(tmp_path), service.sessions, delay_seconds=0).carry_out() == 2


def test_only_staged_copies_that_nobody_works_on_are_swept(service: Service, settings: WorkerSettings) -> None:
    running, over = _lost_job(service), service.submit()
    service.rows("UPDATE jobs SET epoch = 3, lease_until = now() + interval '1 hour' WHERE id = :id", id=running)
    service.cancel(over)
    root = settings.staging_dir
    kept = [root / f"{running}-3-output", root / f"{running}-3-output.part-7"]
    swept = [root / f"{running}-2-output", root / f"{over}-0-output", root / f"{running}-3-push", root / "job_x-1-push"]
    for path in [*kept, *swept]:
        path.mkdir(parents=True)
    staging = Staging(root, service.sessions)
    assert staging.sweep() == len(swept)
    assert sorted(root.iterdir()) == kept
    staging.clear(kept[0])
    assert staging.sweep() == len(list(root.iterdir())) == 0
