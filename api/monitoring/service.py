"""The service as the database knows it: read at most once in a few seconds, the same from every process."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from api.monitoring.counters import counters
from api.store import gauges, tallies
from api.store.gauges import Gauges
from api.store.session import Sessions

FRESH_seconds = 5.0
ARTIFACTS_FRESH_seconds = 300.0
T = TypeVar("T")


class ServiceMetrics(Collector):
    """Metric families for a registry. Without the database only `lathe_database_up`, which is 0."""

    def __init__(self, sessions: Sessions) -> None:
        self._gauges = _Kept(sessions, gauges.read, FRESH_seconds)
        self._tallies = _Kept(sessions, tallies.read, FRESH_seconds)
        self._artifact_bytes = _Kept(sessions, gauges.artifact_bytes, ARTIFACTS_FRESH_seconds)
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def collect(self) -> Iterator[Metric]:
        """What a scrape gets."""
        try:
            now, counted, stored = self._gauges.value(), self._tallies.value(), self._artifact_bytes.value()
        except SQLAlchemyError:
            yield _gauge("lathe_database_up", "Whether the database answers.", 0)
            return
        yield _gauge("lathe_database_up", "Whether the database answers.", 1)
        yield _gauge("lathe_artifact_bytes", "Bytes of finished artifacts.", stored)
        yield from _jobs(now)
        yield from _messages(now)
        yield from _machines(now)
        yield from counters(counted)


class _Kept(Generic[T]):
    """A value of the database, read again when it is older than so long. Scrapes that meet share one reading."""

    def __init__(self, sessions: Sessions, read: Callable[[Session], T], fresh_seconds: float) -> None:
        self._sessions = sessions
        self._read = read
        self._fresh_seconds = fresh_seconds
        self._reading = threading.Lock()
        self._known: tuple[float, T] | None = None

    def value(self) -> T:
        with self._reading:
            if self._known is None or time.monotonic() - self._known[0] > self._fresh_seconds:
                with self._sessions() as session:
                    self._known = time.monotonic(), self._read(session)
            return self._known[1]


def _jobs(now: Gauges) -> Iterator[Metric]:
    labels = ["status", "priority", "device"]
    jobs = GaugeMetricFamily("lathe_jobs", "Jobs that are not over; device is what they ask for.", labels=labels)
    oldest = GaugeMetricFamily("lathe_queue_oldest_seconds", "Age of the longest wait.", labels=labels[1:])
    for status, priority, device, count, age in now.jobs:
        jobs.add_metric([status, str(priority), device], count)
        if status == "queued":
            oldest.add_metric([str(priority), device], float(age))
    yield from (jobs, oldest)
    yield _gauge("lathe_leases_ending", "Leases of jobs that end within 20 s unless they are renewed.", now.leases[0])
    yield _gauge("lathe_leases_overdue", "Leases of jobs that are over and not yet acted on.", now.leases[1])
    yield _by("lathe_pushes", "Pushes to a Hub that wait, run or have failed.", ["status"], now.pushes)


def _messages(now: Gauges) -> Iterator[Metric]:
    yield _gauge("lathe_outbox_messages", "Messages that the broker should have.", now.outbox[0])
    yield _gauge("lathe_outbox_oldest_seconds", "Age of the oldest of them.", now.outbox[1])
    yield _gauge("lathe_webhook_messages_pending", "Webhook messages that are not delivered yet.", now.messages[0])
    yield _gauge("lathe_webhook_oldest_seconds", "Age of the oldest of them.", now.messages[1])
    said = "Webhook endpoints: enabled, or why not (owner, gone, undelivered)."
    yield _by("lathe_webhook_endpoints", said, ["state"], now.endpoints)


def _machines(now: Gauges) -> Iterator[Metric]:
    said = "Workers heard of in the last minute: ready, draining or unfit."
    workers = GaugeMetricFamily("lathe_workers", said, labels=["device", "state"])
    gpus = GaugeMetricFamily("lathe_worker_gpus", "Their GPUs.", labels=["state"])
    for device, state, count, cards in now.workers:
        workers.add_metric([device, state], count)
        if device == "cuda":
            gpus.add_metric([state], cards)
    yield from (workers, gpus)
    yield _gauge("lathe_reconciler_up", "Whether a reconciler leads.", now.leaders)
    hosts = [(name, 1) for name in now.quarantined]
    yield _by("lathe_host_quarantined", "1 for each host that gets no work.", ["host"], hosts)


def _gauge(name: str, said: str, value: object) -> Metric:
    return GaugeMetricFamily(name, said, value=float(value or 0))  # type: ignore[arg-type]


def _by(name: str, said: str, labels: list[str], rows: object) -> Metric:
    family = GaugeMetricFamily(name, said, labels=labels)
    for *values, count in rows:  # type: ignore[attr-defined]
        family.add_metric(values, count)
    return family
