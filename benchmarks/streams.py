"""A thousand open event streams: from the commit of an event to its arrival at everyone who follows the job."""

import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping

from sqlalchemy import update

from api.store import events
from api.store.models import Job
from api.store.session import Sessions, make_engine, make_sessions
from benchmarks.running import Service, connected, post, service

STREAMS, JOBS, EVENTS = 1000, 100, 1000
PAUSE_seconds = 0.02
OPENING = 50
"""Streams that are opened at one time."""
END_seconds = 60.0


def measure_streams() -> None:
    """Print the milliseconds from commit to arrival."""
    with service() as ours:
        client = connected(ours.port)
        job_ids = [post(client, "/v1/jobs", ours.headers)["id"] for _ in range(JOBS)]
        took = asyncio.run(_follow(ours, job_ids))
    hundredths = statistics.quantiles((1000 * seconds for seconds in took), n=100)
    each = STREAMS // JOBS
    print(f"| {STREAMS} streams, {each} to a job, {EVENTS} events, {len(took)} arrivals | ms |\n| :-- | --: |")
    print(f"| p50 | {hundredths[49]:.1f} |\n| p99 | {hundredths[98]:.1f} |")


async def _follow(ours: Service, job_ids: list[str]) -> list[float]:
    arrived: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    ready, opening = asyncio.Semaphore(0), asyncio.Semaphore(OPENING)
    async with asyncio.TaskGroup() as group:
        readers = [
            group.create_task(_read(ours, job_ids[number % JOBS], arrived, ready, opening)) for number in range(STREAMS)
        ]
        for _ in range(STREAMS):
            await ready.acquire()
        engine = make_engine(ours.environment["LATHE_DATABASE_URL"], pool_size=1)
        committed = {}
        for number in range(EVENTS):
            job_id = job_ids[number % JOBS]
            seq = await asyncio.to_thread(_append, make_sessions(engine), job_id)
            committed[job_id, seq] = time.perf_counter()
            await asyncio.sleep(PAUSE_seconds)
        engine.dispose()
        await _all_arrived(arrived, committed)
        for reader in readers:
            reader.cancel()
    return [max(0.0, at - began) for key, began in committed.items() for at in arrived[key]]


async def _read(
    ours: Service,
    job_id: str,
    arrived: defaultdict[tuple[str, int], list[float]],
    ready: asyncio.Semaphore,
    opening: asyncio.Semaphore,
) -> None:
    """One stream: note when each event comes; `ready` once the first one, of the submission, is here."""
    async with opening:
        reader, writer = await asyncio.open_connection("127.0.0.1", ours.port)
        head = {"Host": "benchmark", "Accept": "text/event-stream", **ours.headers}
        lines = (f"GET /v1/jobs/{job_id}/events HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()))
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        number = await _next(reader)
    ready.release()
    while True:
        arrived[job_id, number].append(time.perf_counter())
        number = await _next(reader)


async def _next(reader: asyncio.StreamReader) -> int:
    """Number of the next event."""
    while True:
        line = await reader.readline()
        if not line:
            raise ConnectionError("a stream was closed")
        if line.startswith(b"id: "):
            return int(line[4:])


def _append(sessions: Sessions, job_id: str) -> int:
    with sessions.begin() as session:
        raised = update(Job).where(Job.id == job_id).values(last_seq=Job.last_seq + 1).returning(Job.last_seq)
        seq: int = session.execute(raised).scalar_one()
        events.append(session, job_id, seq, [("progress", {"done": seq})])
    return seq


async def _all_arrived(
    arrived: Mapping[tuple[str, int], list[float]], committed: Mapping[tuple[str, int], float]
) -> None:
    deadline = time.monotonic() + END_seconds
    while any(len(arrived.get(key, ())) < STREAMS // JOBS for key in committed):
        if time.monotonic() > deadline:
            raise TimeoutError("events were lost on their way")
        await asyncio.sleep(0.1)
