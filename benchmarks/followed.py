"""Submitting a job to an API process with 500 open event streams, beside one with none: requests take turns."""

import socket
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from api import lifecycle
from api.store import stages
from api.store.session import make_engine, make_sessions
from benchmarks.running import Service, connected, post, service, signed_in
from benchmarks.submit import CLIENTS, medians, rates

STREAMS, JOBS = 500, 50
KINDS = {"events of jobs that run": "/v1/jobs/{}/events", "live pages of the dashboard": "/jobs/{}/live"}


def measure_followed() -> None:
    """Print what one client waits for and what sixteen get of each, and the ratios of neighbours in time."""
    print(f"| {STREAMS} open streams | one client, p50 ms: none, open, ratio | {CLIENTS} clients, requests/s |")
    print("| :-- | --: | --: |")
    for words, path in KINDS.items():
        with service() as alone, service() as followed:
            headers = followed.headers if path.startswith("/v1/") else signed_in(connected(followed.port), followed)
            paths = [path.format(job_id) for job_id in _running_jobs(followed)]
            both = {"none": alone, "open": followed}
            places = {name: (each.port, "/v1/jobs", each.headers) for name, each in both.items()}
            with _open_streams(followed.port, paths, headers):
                waits = {name: [1000 * seconds for seconds in found] for name, found in medians(places).items()}
                per_second = rates(places)
        print(f"| {words} | {_compared(waits)} | {_compared(per_second)} |", flush=True)


def _running_jobs(ours: Service) -> list[str]:
    """Jobs that a worker holds and never ends."""
    client = connected(ours.port)
    job_ids = [post(client, "/v1/jobs", ours.headers)["id"] for _ in range(JOBS)]
    engine = make_engine(ours.environment["LATHE_DATABASE_URL"], pool_size=1)
    with make_sessions(engine).begin() as session:
        for job_id in job_ids:
            lifecycle.claim(session, job_id, "benchmark")
            stages.plan(session, job_id, ["0-fetch", "1-ptq", "2-export", "3-evaluate"])
    engine.dispose()
    return job_ids


@contextmanager
def _open_streams(port: int, paths: Sequence[str], headers: Mapping[str, str]) -> Iterator[None]:
    """Their first bytes are read, and no more: what comes later fits into the kernel's buffers."""
    with ExitStack() as stack:
        for number in range(STREAMS):
            own = {"Host": f"127.0.0.1:{port}", "Accept": "text/event-stream", **headers}
            lines = (f"GET {paths[number % JOBS]} HTTP/1.1", *(f"{name}: {value}" for name, value in own.items()))
            reader = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            reader.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            first = reader.recv(4096)
            if b" 200 " not in first[:20]:
                raise RuntimeError(f"{lines[0]}: {first[:300]!r}")
        yield


def _compared(found: Mapping[str, Sequence[float]]) -> str:
    ratio = statistics.median(after / before for before, after in zip(found["none"], found["open"], strict=True))
    return f"{statistics.median(found['none']):.2f}, {statistics.median(found['open']):.2f}, {ratio:.2f}"
