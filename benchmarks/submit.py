"""Submitting a job beside the floor: a bare FastAPI application with one INSERT, on the same durable PostgreSQL."""

import statistics
import threading
import time
from collections.abc import Callable, Mapping

from benchmarks.running import connected, post, running, service
from lathe.local.server import free_port

BLOCKS, BLOCK, WARM_UP = 200, 20, 10
"""One client: the two take turns, so many requests each, because a shared machine is fast and slow by turns."""
CLIENTS, TURNS, TURN_seconds = 16, 5, 4.0
"""Many clients: the two take turns, so long each; the first turn warms up."""


def compare_submit() -> None:
    """Print what one client waits for each, what sixteen get from each, and the ratios."""
    bare = free_port()
    with service(BENCHMARK_BARE_PORT=str(bare)) as ours, running(["-m", "benchmarks.bare_service"], ours.environment):
        places: dict[str, tuple[int, str, Mapping[str, str]]] = {
            "bare": (bare, "/", {}),
            "ours": (ours.port, "/v1/jobs", ours.headers),
        }
        blocks = medians(places)
        waits = {name: 1000 * statistics.median(found) for name, found in blocks.items()}
        times = statistics.median(ours / floor for ours, floor in zip(blocks["ours"], blocks["bare"], strict=True))
        per_second = {name: statistics.median(found) for name, found in rates(places).items()}
    print("| | one client, p50 ms | sixteen clients, requests/s |\n| :-- | --: | --: |")
    print(f"| bare FastAPI, one INSERT | {waits['bare']:.2f} | {per_second['bare']:.0f} |")
    print(f"| submit a job | {waits['ours']:.2f} | {per_second['ours']:.0f} |")
    print(f"| ratio | {times:.2f} | {per_second['ours'] / per_second['bare']:.2f} |")


def medians(places: Mapping[str, tuple[int, str, Mapping[str, str]]]) -> dict[str, list[float]]:
    """Seconds of each block: neighbours in time are compared, for the machine may be twice as slow a minute later."""
    clients = {name: connected(port) for name, (port, _, _) in places.items()}
    took: dict[str, list[float]] = {name: [] for name in places}
    for block in range(BLOCKS):
        for name, (_, path, headers) in places.items():
            seconds = [_timed(lambda: post(clients[name], path, headers)) for _ in range(BLOCK)]  # noqa: B023
            took[name] += [statistics.median(seconds)] if block >= WARM_UP else []
    return took


def rates(places: Mapping[str, tuple[int, str, Mapping[str, str]]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in places}
    for turn in range(TURNS):
        for name, (port, path, headers) in places.items():
            rate = _together(port, path, headers) / TURN_seconds
            found[name] += [rate] if turn else []
    return found


def _together(port: int, path: str, headers: Mapping[str, str]) -> int:
    """Requests that all clients got answered in a turn."""
    done = [0] * CLIENTS
    end = time.monotonic() + TURN_seconds

    def ask(number: int) -> None:
        client = connected(port)
        while time.monotonic() < end:
            post(client, path, headers)
            done[number] += 1
        client.close()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
