"""What a lease holder lives through when the database, or its own process, stands still."""

import time

from fixtures.waiting import until
from sqlalchemy import text
from worker_service import Service

from api.store.session import make_engine
from worker.engine_process import Inbox
from worker.heartbeat import UNREACHABLE, Heartbeat


def test_rows_of_a_process_that_stopped_within_a_transaction_come_free(service: Service) -> None:
    job_id = service.submit()
    touch = text("UPDATE jobs SET epoch = epoch + 1 WHERE id = :id")
    stopped = make_engine(service.database_url, pool_size=1, idle_seconds=1)
    with stopped.connect() as connection:
        connection.execute(touch, {"id": job_id})
        started = time.monotonic()
        service.rows(touch.text, id=job_id)
        assert 0.5 < time.monotonic() - started < 15
        try:
            connection.execute(touch, {"id": job_id})
        except UNREACHABLE:
            connection.invalidate()
        else:
            raise AssertionError("the stopped process wrote after its transaction was ended")
    stopped.dispose()
    assert service.job(job_id).epoch == 1


def test_a_primary_that_became_a_standby_does_not_end_the_heartbeat(service: Service) -> None:
    job_id = service.submit()
    beats: list[str] = []

    def renew() -> None:
        beats.append("tried")
        mode = "READ ONLY" if len(beats) < 3 else "READ WRITE"
        with service.sessions.begin() as session:
            session.execute(text(f"SET TRANSACTION {mode}"))
            session.execute(text("UPDATE jobs SET lease_until = now() WHERE id = :id"), {"id": job_id})
        beats.append("renewed")

    with Heartbeat(renew, period_seconds=0.05, inbox=Inbox()) as heartbeat:
        until(lambda: "renewed" in beats, "a renewal after the primary came back")
        assert heartbeat.silence_seconds < 5
    assert beats[:4] == ["tried", "tried", "tried", "renewed"]
