"""The faults: each breaks one thing, waits a moment, and mends it. What follows is the service's affair."""

import os
import random
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import redis
from chaos_cluster import RELAYS, WORKERS, Cluster

Fault = Callable[[Cluster, random.Random], None]
LEASE_seconds = 4.0


def kill_an_engine(cluster: Cluster, dice: random.Random) -> None:
    """kill -9 of the engine child"""
    if engines := cluster.engines():
        with suppress(ProcessLookupError):
            os.kill(dice.choice(engines), signal.SIGKILL)


def kill_a_worker(cluster: Cluster, dice: random.Random) -> None:
    """kill -9 of a supervisor and its pool"""
    name = dice.choice(WORKERS)
    cluster.kill(name)
    cluster.start(name)


def kill_a_relay(cluster: Cluster, dice: random.Random) -> None:
    """kill -9 of a relay, which is a reconciler too"""
    name = dice.choice(RELAYS)
    cluster.kill(name)
    cluster.start(name)


def kill_the_api(cluster: Cluster, dice: random.Random) -> None:
    """kill -9 of the API"""
    cluster.kill("api")
    cluster.start("api")


def drain_a_worker(cluster: Cluster, dice: random.Random) -> None:
    """SIGTERM of a worker: it hands its job back"""
    name = dice.choice(WORKERS)
    cluster.signal(name, signal.SIGTERM)
    if not cluster.ended(name, 20):
        cluster.kill(name)
        raise AssertionError(f"{name} did not end\n{cluster.log(name)[-3000:]}")
    cluster.start(name)


def sleep_through_a_lease(cluster: Cluster, dice: random.Random) -> None:
    """SIGSTOP of a worker until its lease is over, then SIGCONT"""
    name = dice.choice(WORKERS)
    cluster.signal(name, signal.SIGSTOP)
    time.sleep(LEASE_seconds + 2)
    cluster.signal(name, signal.SIGCONT)


def stop_a_relay(cluster: Cluster, dice: random.Random) -> None:
    """SIGSTOP of a relay in the middle of whatever it did, then SIGCONT"""
    name = dice.choice(RELAYS)
    cluster.signal(name, signal.SIGSTOP)
    time.sleep(dice.uniform(0.5, 3))
    cluster.signal(name, signal.SIGCONT)


def repeat_a_message(cluster: Cluster, dice: random.Random) -> None:
    """The same message 100 times"""
    cluster.rows(
        "INSERT INTO outbox (topic, payload) SELECT 'run_job', jsonb_build_object('job_id', id)"
        " FROM (SELECT id FROM jobs ORDER BY random() LIMIT 1) AS one, generate_series(1, 100)"
    )


def flush_the_broker(cluster: Cluster, dice: random.Random) -> None:
    """FLUSHALL"""
    url = cluster.valkey.folder.read_url()
    assert url is not None
    with suppress(redis.ConnectionError), redis.Redis.from_url(url) as client:
        client.flushall()


def kill_the_broker(cluster: Cluster, dice: random.Random) -> None:
    """kill -9 of Valkey, then a start"""
    assert cluster.valkey.process is not None
    cluster.valkey.process.kill()
    cluster.valkey.process.wait()
    time.sleep(dice.uniform(0, 2))
    cluster.valkey.revive()


def restart_the_database(cluster: Cluster, dice: random.Random) -> None:
    """A fast shutdown of PostgreSQL, then a start"""
    _stop_postgres(cluster, signal.SIGINT, dice)


def crash_the_database(cluster: Cluster, dice: random.Random) -> None:
    """An immediate shutdown of PostgreSQL, then its recovery"""
    _stop_postgres(cluster, signal.SIGQUIT, dice)


def _stop_postgres(cluster: Cluster, number: signal.Signals, dice: random.Random) -> None:
    assert cluster.postgres.process is not None
    os.kill(cluster.postgres.process.pid, number)
    cluster.postgres.process.wait(30)
    time.sleep(dice.uniform(0, 2))
    cluster.postgres.revive()


def pause_the_broker(cluster: Cluster, dice: random.Random) -> None:
    """Valkey is silent"""
    cluster.broker.pause()
    time.sleep(dice.uniform(0.5, 3))
    cluster.broker.resume()


def pause_the_database(cluster: Cluster, dice: random.Random) -> None:
    """PostgreSQL is silent, at times for longer than a lease"""
    cluster.database.pause()
    time.sleep(dice.uniform(0.5, LEASE_seconds + 2))
    cluster.database.resume()


def reset_connections(cluster: Cluster, dice: random.Random) -> None:
    """Every connection to PostgreSQL and Valkey is reset"""
    cluster.database.reset()
    cluster.broker.reset()


def cut_an_answer(cluster: Cluster, dice: random.Random) -> None:
    """An answer of PostgreSQL is cut: a commit whose sender cannot know that it happened"""
    cluster.database.cut_answer(dice.randrange(1, 4000))
    time.sleep(0.3)


def two_leaders(cluster: Cluster, dice: random.Random) -> None:
    """The reconciler's lease is taken away while its holder goes on"""
    cluster.rows("DELETE FROM leases WHERE name = 'reconciler'")


def commit_and_never_send(cluster: Cluster, dice: random.Random) -> None:
    """Both relays are killed with messages committed and not sent"""
    for name in RELAYS:
        cluster.signal(name, signal.SIGSTOP)
    time.sleep(dice.uniform(0.2, 1))
    for name in RELAYS:
        cluster.kill(name)
        cluster.start(name)


def hang_an_engine(cluster: Cluster, dice: random.Random) -> None:
    """A child that hangs, seen by the watchdog alone"""
    _set_a_trap(cluster, "hang")


def fill_the_disk(cluster: Cluster, dice: random.Random) -> None:
    """A disk that is full in the middle of a stage"""
    _set_a_trap(cluster, "full")


def _set_a_trap(cluster: Cluster, name: str) -> None:
    trap = cluster.traps / name
    trap.touch()
    deadline = time.monotonic() + 10
    while trap.exists() and time.monotonic() < deadline:
        time.sleep(0.1)


FAULTS: Mapping[str, Fault] = {
    (fault.__doc__ or fault.__name__): fault
    for fault in (
        kill_an_engine,
        kill_a_worker,
        kill_a_relay,
        kill_the_api,
        drain_a_worker,
        sleep_through_a_lease,
        stop_a_relay,
        repeat_a_message,
        flush_the_broker,
        kill_the_broker,
        restart_the_database,
        crash_the_database,
        pause_the_broker,
        pause_the_database,
        reset_connections,
        cut_an_answer,
        two_leaders,
        commit_and_never_send,
        hang_an_engine,
        fill_the_disk,
    )
}
