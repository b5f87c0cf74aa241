"""The reconciler's clock, and what it sweeps away."""

from pathlib import Path

import pytest
from worker_service import SECRET_KEY, Service

from api import lifecycle
from worker.leftovers import Leftovers
from worker.reconciler import Reconciler
from worker.settings import WorkerSettings

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


def test_only_output_that_nobody_can_own_is_swept(service: Service, settings: WorkerSettings) -> None:
    running = _lost_job(service)
    service.rows("UPDATE jobs SET epoch = 3, lease_until = now() + interval '1 hour'")
    cancelled = service.submit()
    service.cancel(cancelled)
    root = settings.artifacts_dir
    kept = [root / running / "3", root / running / "3.partial", root / running / "4", root / "job_unknown" / "1"]
    swept = [root / running / "1", root / running / ".2.tmp", root / cancelled / "0"]
    for path in [*kept, *swept]:
        path.mkdir(parents=True)
        (path / "file").touch()
    assert Leftovers(settings, service.sessions).sweep() == len(swept)
    assert [path for path in [*kept, *swept] if path.exists()] == kept


def test_a_sweep_without_a_folder_is_nothing(service: Service, settings: WorkerSettings) -> None:
    assert not Path(settings.artifacts_dir).exists()
    assert Leftovers(settings, service.sessions).sweep() == 0
