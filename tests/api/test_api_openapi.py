"""The OpenAPI document is pinned; and it tells what the service really answers."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient

from api.main import create_app
from api.settings import Settings

SNAPSHOT = Path(__file__).with_name("openapi.json")


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    settings = Settings(database_url="postgresql://127.0.0.1:9/none", data_dir=Path("/none"), secret_key="k" * 40)
    return create_app(settings).openapi()


def test_the_document_is_the_one_that_was_agreed_on(openapi: dict[str, Any]) -> None:
    """After an intended change: LATHE_UPDATE_SNAPSHOTS=1 pytest tests/api/test_api_openapi.py; then read the diff."""
    text = json.dumps(openapi, indent=1, sort_keys=True) + "\n"
    if os.environ.get("LATHE_UPDATE_SNAPSHOTS"):
        SNAPSHOT.write_text(text)
    assert json.loads(SNAPSHOT.read_text()) == openapi


def test_every_reference_leads_somewhere(openapi: dict[str, Any]) -> None:
    text = json.dumps(openapi)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= set(openapi["components"]["schemas"])


def test_every_operation_has_a_name_of_its_own_a_summary_and_problems(openapi: dict[str, Any]) -> None:
    operations = [operation for path in openapi["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations) >= 17
    assert all(operation["description"] for operation in operations)
    assert all("application/problem+json" in operation["responses"]["default"]["content"] for operation in operations)


@pytest.mark.integration
def test_answers_meet_their_schemas(client: TestClient, openapi: dict[str, Any], document: dict[str, Any]) -> None:
    body_schema = {"$ref": "#/components/schemas/Recipe", **openapi}
    jsonschema.validate(document, body_schema)
    job = client.post("/v1/jobs", json=document).json()
    jsonschema.validate(job, {"$ref": "#/components/schemas/Job", **openapi})
    for path in ("/v1/techniques", "/v1/formats", "/v1/jobs", f"/v1/jobs/{job['id']}/events"):
        ref = openapi["paths"][path.replace(job["id"], "{job_id}")]["get"]["responses"]["200"]["content"]
        answer = client.get(path)
        jsonschema.validate(answer.json(), {**ref["application/json"]["schema"], **openapi})
        assert answer.json()["data"]
    jsonschema.validate(client.get("/nope").json(), {"$ref": "#/components/schemas/Problem", **openapi})
