"""What a kill, a pause, a flood or an outage leaves behind: one result, from the claim that held the lease."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from fixtures.waiting import until
from worker_service import Hold, Service, is_running

from lathe.local.postgres import Postgres
from lathe.local.valkey import Valkey
from migrations import upgrade

pytestmark = pytest.mark.integration


def _check_invariants(service: Service, job_id: str, digest: str | None = None) -> None:
    """One committed artifact, of the job's last epoch; a history without gaps that ends once; no stage run twice."""
    job = service.job(job_id)
    types = [event.type for event in service.events(job_id)]
    assert [event.seq for event in service.events(job_id)] == list(range(1, len(types) + 1))
    assert types.count("job.succeeded") == 1
    assert types[-1] == "job.succeeded"
    states = service.rows("SELECT epoch, state FROM attempts ORDER BY epoch")
    assert [state for _, state in states].count("succeeded") == 1
    assert tuple(states[-1]) == (job.epoch, "succeeded")
    assert (service.output(job_id) / "manifest.json").exists()
    assert digest is None or job.artifact_digest == digest
    runs = service.stage_runs()
    assert sorted(runs) == sorted(set(runs))


def test_a_killed_engine_is_run_again_and_finished_stages_are_not(service: Service) -> None:
    hold = Hold.at(service.folder)
    grandchild = service.folder / "grandchild.pid"
    service.start_relay()
    service.start_worker()
    job_id = service.submit(wishes={"hold": hold.path, "grandchild": grandchild})
    os.kill(hold.engine_pid(), signal.SIGKILL)
    until(lambda: not is_running(int(grandchild.read_text())), "the rest of the group to be killed too")
    service.await_status(job_id, "queued")
    hold.release()
    assert service.finish_soon(job_id).attempt == 2
    _check_invariants(service, job_id)
    [(failure,)] = service.rows("SELECT failure FROM attempts WHERE epoch = 1")
    assert failure["code"] == "engine_crashed"
    assert failure["stage"] == "1-ptq"
    assert "SIGKILL" in failure["message"]
    assert "working on 1-ptq" in failure["message"]


def test_a_killed_worker_takes_its_engine_along_and_another_finishes(service: Service) -> None:
    hold = Hold.at(service.folder)
    service.start_relay()
    service.start_worker("first")
    job_id = service.submit(wishes={"hold": hold.path})
    engine = hold.engine_pid()
    service.kill("first")
    until(lambda: not is_running(engine), "the engine to die with its worker")
    assert service.job(job_id).status == "running"
    hold.release()
    service.start_worker()
    service.lose_lease(job_id)
    job = service.finish_soon(job_id)
    assert job.epoch == 2
    _check_invariants(service, job_id)
    assert service.rows("SELECT state FROM attempts WHERE epoch = 1") == [("lost",)]


def test_a_worker_that_slept_through_its_lease_is_refused(service: Service) -> None:
    hold = Hold.at(service.folder)
    service.start_relay()
    service.start_worker("sleeper")
    job_id = service.submit(wishes={"hold": hold.path})
    engine = hold.engine_pid()
    service.signal("sleeper", signal.SIGSTOP)
    service.lose_lease(job_id)
    service.start_worker()
    until(lambda: (service.hurry(job_id), service.job(job_id).epoch == 2)[1], "the second claim")
    hold.release()
    until(lambda: not is_running(engine), "the first engine to end, unseen by its sleeping worker")
    job = service.await_status(job_id, "succeeded")
    history = len(service.events(job_id))
    service.signal("sleeper", signal.SIGCONT)
    until(lambda: "refused" in service.log("sleeper") or "not ours" in service.log("sleeper"), "the refusal")
    assert service.job(job_id).epoch == job.epoch == 2
    assert len(service.events(job_id)) == history
    _check_invariants(service, job_id, job.artifact_digest)


def test_a_message_that_comes_many_times_runs_the_job_once(service: Service) -> None:
    hold = Hold.at(service.folder)
    service.start_relay()
    service.start_worker("one")
    service.start_worker("two")
    job_id = service.submit(wishes={"hold": hold.path})
    hold.engine_pid()
    payload = f'{{"job_id": "{job_id}"}}'
    service.rows(
        "INSERT INTO outbox (topic, payload) SELECT 'run_job', CAST(:payload AS jsonb) FROM generate_series(1, 40)",
        payload=payload,
    )
    until(lambda: not service.rows("SELECT 1 FROM outbox WHERE published_at IS NULL"), "the relay")
    hold.release()
    service.await_status(job_id, "succeeded")
    with redis.Redis.from_url(service.redis_url) as broker:
        until(lambda: not broker.llen("lathe:gpu"), "all the messages to be taken")
    assert service.job(job_id).epoch == 1
    _check_invariants(service, job_id)


def test_a_flushed_broker_costs_a_wait_and_no_job(service: Service) -> None:
    hold = Hold.at(service.folder)
    service.start_relay()
    service.start_worker()
    first = service.submit(wishes={"hold": hold.path})
    hold.engine_pid()
    lost = service.submit(seed=1)
    until(lambda: not service.rows("SELECT 1 FROM outbox WHERE published_at IS NULL"), "the relay")
    service.flush_broker()
    hold.release()
    service.await_status(first, "succeeded")
    service.await_status(lost, "succeeded")


def test_an_idle_worker_finds_what_the_broker_lost(service: Service) -> None:
    service.start_worker()
    lost = service.submit()
    assert service.await_status(lost, "succeeded").attempt == 1, "no relay ever announced it"


def test_the_broker_may_be_killed_and_come_back(service: Service, tmp_path: Path) -> None:
    hold = Hold.at(service.folder)
    broker = Valkey(tmp_path / "broker")
    with broker as url:
        service.redis_url = url
        service.start_relay()
        service.start_worker()
        running = service.submit(wishes={"hold": hold.path})
        hold.engine_pid()
        assert broker.process is not None
        broker.process.kill()
        broker.process.wait()
        later = service.submit(seed=1)
        until(lambda: "broker away" in service.log("relay"), "the relay to notice")
        hold.release()
        service.await_status(running, "succeeded")
        broker.revive()
        service.await_status(later, "succeeded", timeout_seconds=60)
        with redis.Redis.from_url(url) as client:
            assert client.ping()


def test_the_database_may_drop_every_connection(service: Service) -> None:
    hold = Hold.at(service.folder)
    service.start_relay()
    service.start_worker()
    job_id = service.submit(wishes={"hold": hold.path})
    hold.engine_pid()
    dropped = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
    service.rows(f"{dropped} AND pid <> pg_backend_pid()")
    until(lambda: "database away" in service.log("relay"), "the relay to notice")
    hold.release()
    job = service.await_status(job_id, "succeeded")
    assert job.epoch == 1
    _check_invariants(service, job_id)
    second = service.submit(seed=1)
    service.await_status(second, "succeeded")


def test_a_drained_worker_gives_its_job_back(service: Service) -> None:
    hold = Hold.at(service.folder)
    service.start_relay()
    service.start_worker("leaving")
    job_id = service.submit(wishes={"hold": hold.path})
    engine = hold.engine_pid()
    os.kill(service.processes["leaving"].pid, signal.SIGTERM)
    assert service.processes["leaving"].wait(20) == 0
    assert not is_running(engine)
    job = service.job(job_id)
    assert (job.status, job.losses) == ("queued", 0)
    hold.release()
    service.start_worker()
    assert service.await_status(job_id, "succeeded").epoch == 2
    _check_invariants(service, job_id)
    assert service.rows("SELECT state FROM attempts WHERE epoch = 1") == [("released",)]


def test_a_worker_cut_off_from_the_database_kills_its_engine_and_another_finishes(
    service: Service, tmp_path: Path
) -> None:
    hold = Hold.at(service.folder)
    database = Postgres(tmp_path / "postgres")
    with database as url, _on(service, url):
        service.settings |= {"ISOLATE_SECONDS": 1, "PARTITION_KILL_SECONDS": 2}
        service.start_relay()
        service.start_worker()
        job_id = service.submit(wishes={"hold": hold.path})
        engine = hold.engine_pid()
        assert database.process is not None
        os.kill(database.process.pid, signal.SIGQUIT)
        database.process.wait()
        until(lambda: not is_running(engine), "the engine to be killed")
        hold.release()
        until(lambda: "writes nothing" in service.log("worker"), "the attempt to be abandoned")
        database.revive()
        service.engine.dispose()
        assert service.job(job_id).status == "running"
        service.lose_lease(job_id)
        assert service.finish_soon(job_id).epoch == 2
        _check_invariants(service, job_id)


def test_an_engine_is_killed_while_its_worker_waits_for_a_database_that_hangs(service: Service) -> None:
    hold = Hold.at(service.folder)
    service.settings |= {"ISOLATE_SECONDS": 1, "PARTITION_KILL_SECONDS": 2}
    service.start_relay()
    service.start_worker()
    job_id = service.submit(wishes={"hold": hold.path})
    engine = hold.engine_pid()
    stopped: set[int] = set()

    def engine_is_gone() -> bool:
        """Looks with every backend stopped, new ones too."""
        others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        for (pid,) in service.rows(others):
            os.kill(pid, signal.SIGSTOP)
            stopped.add(pid)
        return not is_running(engine)

    try:
        until(engine_is_gone, "the engine to be killed")
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    until(lambda: "Task run_job" in service.log("worker").split("received", 1)[1], "the attempt to end")
    service.lose_lease(job_id)
    hold.release()
    assert service.finish_soon(job_id).epoch == 2
    _check_invariants(service, job_id)


@contextmanager
def _on(service: Service, url: str) -> Iterator[None]:
    """Move the service to a database that may be killed."""
    upgrade(url)
    service.engine.dispose()
    service.database_url = url
    service.__post_init__()
    service.add_project()
    yield
    service.close()
