"""Traces by OpenTelemetry, from a request to the stages of its job. Off unless an OTLP endpoint is set.

The library is an extra, and nothing of it is imported while traces are off: then each call here is one `if`. Its own
variables say the rest: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER and so on.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from optcore.extras import how_to_install

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
Kind = Literal["internal", "server", "consumer", "client"]
_NOTHING: AbstractContextManager[None] = nullcontext()
_NANO = 1_000_000_000


class TracesNotInstalled(Exception):
    """An endpoint for traces is set, and the library that sends them is absent."""


_provider: "TracerProvider | None" = None


def configure(service: str) -> None:
    """Turn traces on where the environment names an endpoint; `service` is their name unless OTEL_SERVICE_NAME is set.

    Call it in each process, after any fork. Raises `TracesNotInstalled`.
    """
    global _provider
    if _provider is not None or not _wanted(os.environ):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracesNotInstalled(
            f"{ENDPOINTS[0]} is set, but OpenTelemetry is not installed: {how_to_install('traces')}, or unset it"
        ) from error
    resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME") or service})
    _provider = TracerProvider(resource=resource)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))


def shut_down() -> None:
    """Send what is left, and turn traces off."""
    global _provider
    if _provider is not None:
        _provider.shutdown()
        _provider = None


def span(
    name: str, *, parent: str | None = None, link: str | None = None, kind: Kind = "internal", **attributes: object
) -> "AbstractContextManager[Span | None]":
    """A span around a block, below `parent` (a `traceparent`) or else the present one; nothing while traces are off.

    `link` is the `traceparent` of a span that it has to do with, but that decides nothing about it. An attribute
    `job_id` is told as `lathe.job_id`. Of an error that escapes its type alone is told: its text may hold secrets.
    """
    return _NOTHING if _provider is None else _span(name, parent, link, kind, attributes)


def begin(name: str, **attributes: object) -> "Span | None":
    """A span below the present one that its owner has to end; None while traces are off."""
    return None if _provider is None else _tracer().start_span(name, attributes=_named(attributes))


def past(name: str, parent: str | None, moments: tuple[datetime, datetime], **attributes: object) -> None:
    """A span between two moments of something that is over: such as the wait of a job in the queue."""
    if _provider is not None:
        began, ended = (round(moment.timestamp() * _NANO) for moment in moments)
        made = _tracer().start_span(name, _below(parent), start_time=began, attributes=_named(attributes))
        made.end(max(began, ended))


def traceparent() -> str | None:
    """The present span in the form of W3C Trace Context, to go on with elsewhere; None while traces are off."""
    return None if _provider is None else _carrier().get("traceparent")


def trace_id() -> str | None:
    """Of the present span, for log lines."""
    if _provider is None:
        return None
    parts = _carrier().get("traceparent", "").split("-")
    return parts[1] if len(parts) == 4 else None


def name_request(method: str, route: str, status: int, **attributes: object) -> None:
    """Say what the present span, of a request, turned out to be."""
    if _provider is not None:
        from opentelemetry.trace import get_current_span

        here = get_current_span()
        here.update_name(f"{method} {route}")
        here.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
        here.set_attributes(_named(attributes))
        if status >= 500:
            fail(str(status), here)


def fail(message: str, here: "Span | None" = None) -> None:
    """Mark a span, by default the present one, as one that went wrong."""
    if _provider is not None:
        from opentelemetry.trace import Status, StatusCode, get_current_span

        (here or get_current_span()).set_status(Status(StatusCode.ERROR, message))


def _wanted(environment: Mapping[str, str]) -> bool:
    refused = environment.get("OTEL_TRACES_EXPORTER") == "none"
    disabled = environment.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not (refused or disabled) and any(environment.get(name) for name in ENDPOINTS)


def _tracer() -> Any:
    assert _provider is not None
    return _provider.get_tracer("lathe")


@contextmanager
def _span(
    name: str, parent: str | None, link: str | None, kind: Kind, attributes: Mapping[str, object]
) -> Iterator[Any]:
    from opentelemetry.trace import Link, SpanKind, get_current_span

    far = get_current_span(_below(link)).get_span_context() if link else None
    links = [Link(far)] if far is not None and far.is_valid else []
    told: dict[str, Any] = {"attributes": _named(attributes), "links": links}
    silent = {"record_exception": False, "set_status_on_exception": False}
    with _tracer().start_as_current_span(name, _below(parent), SpanKind[kind.upper()], **told, **silent) as made:
        try:
            yield made
        except Exception as error:
            fail(type(error).__name__, made)
            raise


def _below(parent: str | None) -> "Context | None":
    """None is the present span; so is what cannot be read."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": parent}) if parent else None


def _carrier() -> dict[str, str]:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier


def _named(attributes: Mapping[str, object]) -> dict[str, Any]:
    return {f"lathe.{name}": value for name, value in attributes.items() if value is not None}
