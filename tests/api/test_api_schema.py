"""Requests made up from the OpenAPI document, valid and broken: none is a crash, each answer fits its schema."""

from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import booleans
from schemathesis import GenerationMode
from schemathesis.checks import (
    allow_header_conformance,
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    allow_header_conformance,
]
EXAMPLES = 20
"""Of each kind, for each operation."""


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "broken"])
def test_no_request_is_a_crash_and_every_answer_fits(
    client: TestClient, belongings: dict[str, str], mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    tried = [_try(result.ok(), mode, client, belongings) for result in schema.get_all_operations()]
    assert len(tried) >= 35
    assert sum(tried) > 10 * len(tried)


def _try(operation: Any, mode: GenerationMode, client: TestClient, belongings: dict[str, str]) -> int:
    """Call one operation often; how often."""
    calls = 0

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode), at_something=booleans())
    def call(case: Any, at_something: bool) -> None:
        nonlocal calls
        calls += 1
        if at_something and case.path_parameters:
            case.path_parameters = {name: belongings.get(name, value) for name, value in case.path_parameters.items()}
        headers = {"Authorization": client.headers["Authorization"]}
        case.call_and_validate(headers=headers, checks=CHECKS)

    with suppress(Unsatisfiable):  # an operation that takes nothing has nothing to break
        call()
    return calls
