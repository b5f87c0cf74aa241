"""Secrets go in, and come out nowhere: database, logs, events, answers, files, what engines are told."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi.testclient import TestClient
from fixtures.waiting import until
from sqlalchemy import inspect
from worker_service import SECRET_KEY, Service, recipe

from api.main import create_app
from api.settings import Settings
from api.store import keys

pytestmark = pytest.mark.integration
OPERATORS_TOKEN = "hf_operator"


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    settings = Settings(
        database_url=service.database_url,
        data_dir=service.data_dir,
        secret_key=SECRET_KEY,
        model_roots=(Path("models").resolve(),),
        allow_private_webhooks=("127.0.0.1",),
    )
    with TestClient(create_app(settings), raise_server_exceptions=False) as made:
        with service.sessions.begin() as session:
            made.headers["Authorization"] = f"Bearer {keys.create(session, 'acme')[1]}"
        yield made


def test_a_full_run_leaks_no_secret(
    service: Service, client: TestClient, hub: Any, receiver: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    service.environ |= {"HF_ENDPOINT": hub.url}
    token, refused = hub.environment["HF_TOKEN"], f"hf_{secrets.token_hex(12)}"
    endpoint = client.post("/v1/webhook_endpoints", json={"url": receiver.url, "events": ["job.succeeded"]}).json()
    rotated = client.post(f"/v1/webhook_endpoints/{endpoint['id']}/rotate_secret").json()
    made = client.post("/v1/keys", json={"scopes": ["jobs:read"]}).json()
    for name, value in (("good", token), ("bad", refused)):
        assert client.put(f"/v1/credentials/{name}", json={"token": value}).status_code == 200
    service.start_relay()
    service.start_worker()
    published, unpublished = (_submit(client, credential) for credential in ("good", "bad"))
    crashed = _submit(client, "good", metadata={"crash": "1"}, seed=1)
    for job_id, status in ((published, "published"), (unpublished, "failed")):
        until(lambda job_id=job_id: service.hurry(job_id) or service.job(job_id).publish_status != "pending", "a push")
        until(lambda job_id=job_id, status=status: service.job(job_id).publish_status == status, f"{job_id} {status}")
    service.finish_soon(crashed, "failed")
    hidden = {
        "a Hub token": token,
        "a Hub token that was refused": refused,
        "the operator's token": OPERATORS_TOKEN,
        "a webhook secret": endpoint["secret"],
        "a rotated webhook secret": rotated["secret"],
        "an API key": made["key"],
        "the caller's API key": client.headers["Authorization"].removeprefix("Bearer "),
        "the service's key": SECRET_KEY,
        "the database's password": str(urlsplit(service.database_url).password),
    }
    captured = capsys.readouterr()
    places = {
        "the database": _dump(service),
        "the API's log": captured.out + captured.err,
        "the answers": _answers(client, published, unpublished, crashed),
        **{f"the log of {name}": service.log(name) for name in ("relay", "worker")},
        **{str(path): path.read_text(errors="replace") for path in _files(service.data_dir)},
    }
    assert len(places["the database"]) > 10_000
    leaks = [
        f"{secret} in {place}" for secret, value in hidden.items() for place, text in places.items() if value in text
    ]
    assert not leaks
    assert any("[secret]" in text for text in places.values()), "the engine did print one"


def _submit(client: TestClient, credential: str, **more: Any) -> str:
    wanted = recipe({}, model={"id": "me/model"}, publish={"repo_id": f"me/{credential}", "credential": credential})
    answer = client.post("/v1/jobs", json=wanted.model_dump(mode="json") | more)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def _dump(service: Service) -> str:
    tables = inspect(service.engine).get_table_names()
    return "\n".join(str(row) for table in tables for row in service.rows(f'SELECT t::text FROM "{table}" AS t'))


def _answers(client: TestClient, *job_ids: str) -> str:
    """Every GET that the API has, of every job."""
    texts = []
    for path, verbs in client.get("/openapi.json").json()["paths"].items():
        if "get" in verbs:
            for job_id in job_ids:
                texts.append(client.get(path.format_map(_Names(job_id=job_id))).text)
    return "\n".join(texts)


class _Names(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return "engine.log"


def _files(data_dir: Path) -> list[Path]:
    """What attempts leave; not the fake engine's own note of the token that it was lent."""
    return [path for path in data_dir.rglob("*") if path.is_file() and path.name != "fetched-with"]
