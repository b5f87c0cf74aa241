"""What is forgotten when its time is over, and what is not."""

import os
import time
from pathlib import Path

import pytest
from sqlalchemy import text
from worker_service import SECRET_KEY, Service

from api import lifecycle
from api.lifecycle import ArtifactFile
from api.store import audit, leases, retention
from optcore.events import Metric
from optcore.stage import StageRecord
from optcore.work import WorkFolder
from worker import cache
from worker.cache import in_use
from worker.reconciler import Reconciler
from worker.settings import WorkerSettings

pytestmark = pytest.mark.integration
DAY_seconds = 24 * 3600


def _settings(service: Service, **more: object) -> WorkerSettings:
    return WorkerSettings(database_url=service.database_url, data_dir=service.data_dir, secret_key=SECRET_KEY, **more)


def _finished(service: Service, days_ago: int) -> str:
    job_id = service.submit()
    with service.sessions.begin() as session:
        claim = lifecycle.claim(session, job_id, "w")
        assert claim is not None
        lifecycle.record(session, claim, [Metric(stage="1-ptq", name="kl", value=1.0)])
        lifecycle.record_log(session, claim, "line\n")
        lifecycle.finish(session, claim, "digest", [ArtifactFile("a", 1, "0" * 64)])
    service.rows(
        "UPDATE jobs SET finished_at = now() - make_interval(days => :days) WHERE id = :id", days=days_ago, id=job_id
    )
    return job_id


def test_details_go_before_the_job_and_unfinished_jobs_stay(service: Service) -> None:
    old, new = _finished(service, 31), _finished(service, 1)
    running = service.submit()
    with service.sessions.begin() as session:
        claim = lifecycle.claim(session, running, "w")
        assert claim is not None
        lifecycle.record_log(session, claim, "still here\n")
        session.execute(text("UPDATE jobs SET created_at = now() - interval '1 year' WHERE id = :id"), {"id": running})
        assert retention.forget_details(session, days=30) == 2
        assert retention.forget_details(session, days=30) == 0
    assert {row[0] for row in service.rows("SELECT job_id FROM log_chunks")} == {new, running}
    with service.sessions.begin() as session:
        assert retention.forget_jobs(session, days=30) == 1
    assert {row[0] for row in service.rows("SELECT id FROM jobs")} == {new, running}
    assert [row[0] for row in service.rows("SELECT prefix FROM removals")] == [old]


def test_a_job_that_is_being_published_is_not_forgotten(service: Service) -> None:
    old = _finished(service, 31)
    service.rows("UPDATE jobs SET publish_status = 'pending', publish_wake_at = now() WHERE id = :id", id=old)
    with service.sessions.begin() as session:
        assert retention.forget_jobs(session, days=30) == 0


def test_audit_entries_and_answers_have_an_end(service: Service) -> None:
    with service.sessions.begin() as session:
        for _ in range(3):
            audit.add(session, "acme", "key_1", "job.create", "job_1")
        session.execute(text("UPDATE audit_log SET at = now() - interval '366 days' WHERE id < 3"))
        session.execute(
            text(
                "INSERT INTO idempotency_keys (project_id, route, key, body_sha256, created_at) VALUES"
                " ('acme', 'r', 'old', 'x', now() - interval '25 hours'), ('acme', 'r', 'new', 'x', now())"
            )
        )
        assert retention.forget_audit(session, days=365) == 2
        assert retention.forget_served(session) == 1
    assert service.rows("SELECT count(*) FROM audit_log") == [(1,)]
    assert service.rows("SELECT key FROM idempotency_keys") == [("new",)]


def test_one_reconciler_leads_until_it_is_silent(service: Service) -> None:
    settings = _settings(service, reconcile_seconds=0.001)
    first, second = (Reconciler(settings, service.sessions) for _ in range(2))
    first.tick()
    [(leader, term)] = service.rows("SELECT holder, term FROM leases")
    service.rows("UPDATE leases SET until = now() + interval '1 minute'")
    second.tick()
    assert service.rows("SELECT holder, term FROM leases") == [(leader, term)]
    service.rows("UPDATE leases SET until = now() - interval '1 second'")
    time.sleep(0.01)
    second.tick()
    [(other, next_term)] = service.rows("SELECT holder, term FROM leases")
    assert (other != leader, next_term) == (True, term + 1)
    service.rows("UPDATE leases SET until = now() + interval '1 minute'")
    with service.sessions.begin() as session:
        assert leases.hold(session, "reconciler", leader, 60) is None
        leases.release(session, "reconciler", leader)
        assert leases.hold(session, "reconciler", other, 60) == next_term, "its own lease is renewed, not taken"


def _stage(work: WorkFolder, key: str, used_days_ago: float) -> Path:
    part = work.begin(key)
    (part / "files" / "weights").write_bytes(b"x" * 1000)
    work.commit(part, StageRecord(key=key, name="1-ptq", seconds=0.0, peak_memory_bytes=0))
    record = work.files(key).parent / "record.json"
    then = time.time() - used_days_ago * DAY_seconds
    os.utime(record, (then, then))
    return record.parent


def test_cached_stages_go_by_their_last_use_and_only_while_no_engine_runs(service: Service) -> None:
    settings = _settings(service, cache_days=14)
    folder = settings.work_dir("acme")
    work = WorkFolder(folder)
    old, used, new = (_stage(work, key * 64, days) for key, days in (("a", 20), ("b", 20), ("c", 1)))
    assert work.record("b" * 64) is not None, "found by a run: that is a use"
    with in_use(folder):
        assert cache.sweep(settings) == 0
    assert cache.sweep(settings) > 1000
    assert (old.exists(), used.exists(), new.exists()) == (False, True, True)
    assert cache.sweep(settings.model_copy(update={"cache_bytes": 2000})) > 1000
    assert (used.exists(), new.exists()) == (True, False), "the longest unused goes first"
