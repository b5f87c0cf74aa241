"""What a trace tells of a stranger's header and of an error: nothing that they could decide or give away."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from api import tracing
from api.main import create_app
from api.settings import Settings

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_provider", provider)
    yield exporter
    provider.shutdown()


@pytest.mark.integration
@pytest.mark.parametrize("trusted", [False, True])
def test_a_caller_is_linked_to_and_decides_nothing_unless_it_is_trusted(
    settings: Settings, spans: InMemorySpanExporter, trusted: bool
) -> None:
    app = create_app(settings.model_copy(update={"trust_traceparent": trusted}))
    asked = TestClient(app).get("/sign-in", headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-00"})
    assert asked.status_code == 200
    found: list[Any] = list(spans.get_finished_spans())
    if trusted:
        assert found == [], "the caller samples nothing"
        return
    (span,) = found
    assert span.parent is None
    assert f"{span.context.trace_id:032x}" != TRACE
    assert [f"{link.context.trace_id:032x}" for link in span.links] == [TRACE]


@pytest.mark.parametrize("header", [None, "nonsense"])
def test_what_is_no_caller_is_no_link(spans: InMemorySpanExporter, header: str | None) -> None:
    with tracing.span("request", link=header):
        assert tracing.trace_id()
    (span,) = spans.get_finished_spans()
    assert not span.links


def test_of_an_error_that_escapes_a_span_holds_the_type_alone(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="hf_secret"), tracing.span("publish"):
        raise ValueError("the token hf_secret was refused")
    (span,) = spans.get_finished_spans()
    assert (span.status.description, span.status.is_ok, list(span.events)) == ("ValueError", False, [])
    assert "hf_secret" not in span.to_json()
