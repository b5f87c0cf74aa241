"""Requests of this process, counted by the template of their route: a path would make a series of every job."""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, multiprocess
from starlette.types import Scope

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
"""A folder that the processes of `uvicorn --workers` share, in which each keeps its counts; Prometheus's own name."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class RequestMetrics:
    """Counts of one application."""

    def __init__(self) -> None:
        self._own = CollectorRegistry()
        self._answers = Counter(
            "lathe_http_requests_total", "Requests answered.", ("method", "route", "status"), registry=self._own
        )
        self._seconds = Histogram(
            "lathe_http_request_duration_seconds",
            "From a request to the end of its answer; of an event stream, to its beginning.",
            ("method", "route"),
            buckets=_SECONDS,
            registry=self._own,
        )
        self._refused = Counter("lathe_rate_limit_refusals_total", "Requests above a key's rate.", registry=self._own)
        self.streams = Gauge(
            "lathe_event_streams", "Open event streams.", registry=self._own, multiprocess_mode="livesum"
        )
        """Set by who serves one."""

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """A request is over, or its event stream has begun."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = route_of(scope)
        self._answers.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)
        if status == 429:
            self._refused.inc()

    @property
    def registry(self) -> CollectorRegistry:
        """To read: this process's counts, or the sums of all processes that share the folder."""
        if MULTIPROCESS not in os.environ:
            return self._own
        shared = CollectorRegistry()
        multiprocess.MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return shared


def route_of(scope: Scope) -> str:
    """The template of the route that a request led to, such as `/v1/jobs/{job_id}`."""
    if "route" in scope:
        return str(scope["route"].path)
    return "mounted" if "endpoint" in scope else "unmatched"
