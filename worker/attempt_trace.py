"""An attempt as logs and traces tell it: its lines carry the job's ids and stage, its stages are spans below it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import structlog

from api import lifecycle, tracing
from optcore.errors import Failure
from optcore.events import AnyEvent, RunFailed, StageFinished, StageStarted

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = logging.getLogger(__name__)


@contextmanager
def told_of(claim: lifecycle.Claim) -> Iterator[None]:
    """Everything in the block is about this claim: also in threads that are started there with its context."""
    ids: dict[str, Any] = {"job_id": claim.job_id, "epoch": claim.epoch}
    if claim.waited:
        tracing.past("queue", claim.traceparent, claim.waited, **ids)
    with (
        structlog.contextvars.bound_contextvars(request_id=claim.request_id, attempt=claim.attempt, **ids),
        tracing.span(
            "attempt",
            parent=claim.traceparent,
            kind="consumer",
            request_id=claim.request_id,
            attempt=claim.attempt,
            worker_id=claim.worker_id,
            **ids,
        ),
    ):
        yield


class StageTrace:
    """Follows the stages of one engine by its events. Use as a context: leaving it ends what is open."""

    def __init__(self) -> None:
        self._span: Span | None = None
        self._failure: Failure | None = None

    def __enter__(self) -> "StageTrace":
        return self

    def __exit__(self, *_: object) -> None:
        """A stage that is still open did not finish: the engine failed, died, or was told to stop."""
        if self._span is not None:
            tracing.fail(self._failure.code if self._failure else "stopped", self._span)
            self._end()
        structlog.contextvars.unbind_contextvars("stage")

    def hear(self, event: AnyEvent) -> None:
        """Something was said."""
        match event:
            case StageStarted():
                structlog.contextvars.bind_contextvars(stage=event.stage)
                self._end()
                self._span = tracing.begin(f"stage {event.stage}", stage=event.stage, key=event.key)
                log.info("stage begins")
            case StageFinished():
                self._span = self._span or tracing.begin(f"stage {event.stage}", stage=event.stage, key=event.key)
                self._finish(event)
            case RunFailed():
                self._failure = event.failure

    def _finish(self, event: StageFinished) -> None:
        if self._span is not None:
            self._span.set_attribute("lathe.cached", event.cached)
            self._span.set_attribute("lathe.peak_memory_bytes", event.peak_memory_bytes)
            if event.peak_gpu_memory_bytes is not None:
                self._span.set_attribute("lathe.peak_gpu_memory_bytes", event.peak_gpu_memory_bytes)
        log.info("stage %s ends, cached: %s", event.stage, event.cached)
        self._end()

    def _end(self) -> None:
        if self._span is not None:
            self._span.end()
            self._span = None
