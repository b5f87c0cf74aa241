"""What the service documents and what the SDK can ask for are the same set."""

import inspect
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from lathe._protocol import access, artifacts, catalog, jobs, webhooks
from lathe._protocol.call import Call
from lathe._stream import Cursor
from lathe.models import JobEvent, LogChunk

DOCUMENT = Path(__file__).parents[1] / "api" / "openapi.json"
NOT_FOR_CLIENTS = {("GET", "/healthz"), ("GET", "/problems/x")}
"""For load balancers, and for people who follow the `type` of a problem."""
MAYBE_AHEAD = {
    ("POST", "/v1/jobs/estimate"),
    ("GET", "/v1/comparisons"),
    ("GET", "/v1/workers"),
    ("GET", "/v1/templates"),
}
"""What the SDK may know before the document does."""
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "params": ({},),
    "recipe": ({},),
    "changes": ({},),
    "verb": get_args(jobs.Verb),
    "cursor": (Cursor(JobEvent), Cursor(LogChunk)),
    "job_ids": (["x"],),
    "offset_bytes": (0,),
    "since": (datetime(2026, 1, 1, tzinfo=UTC),),
    "until": (None,),
}


def _calls(module: ModuleType) -> Iterator[Call[Any]]:
    """Every call that a module of the protocol can build; an argument that is not named above is `x`."""
    for name, function in inspect.getmembers(module, inspect.isfunction):
        if function.__module__ != module.__name__ or name.startswith("_"):
            continue
        required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
        choices = [ARGUMENTS.get(parameter, ("x",)) for parameter in required]
        for number in range(max([1, *map(len, choices)])):
            yield function(*(values[number % len(values)] for values in choices))


def test_the_sdk_asks_for_what_the_service_documents_and_for_nothing_else() -> None:
    modules = (access, artifacts, catalog, jobs, webhooks)
    ours = {(call.method, call.path) for module in modules for call in _calls(module)}
    paths = json.loads(DOCUMENT.read_text())["paths"]
    served = {
        (method.upper(), re.sub(r"\{\w+\}", "x", path)) for path, operations in paths.items() for method in operations
    }
    assert served - ours == NOT_FOR_CLIENTS
    assert ours - served <= MAYBE_AHEAD
    assert ours >= MAYBE_AHEAD
