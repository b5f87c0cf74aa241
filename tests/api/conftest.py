"""A database, an application over it, and clients of two owners."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from fixtures.documents import DOCUMENT
from sqlalchemy import func, text, update

from api import lifecycle
from api.lifecycle import ArtifactFile
from api.main import create_app
from api.settings import Settings
from api.store import credentials, keys, webhooks
from api.store.models import Job
from api.store.session import Sessions, make_engine, make_sessions
from optcore.recipe import Recipe, recipe_from

OWNER = "acme"


@pytest.fixture
def document() -> dict[str, Any]:
    """A recipe that needs nothing on this machine."""
    return {**DOCUMENT}


@pytest.fixture
def recipe() -> Recipe:
    return recipe_from(DOCUMENT)


@pytest.fixture
def sessions(database_url: str) -> Iterator[Sessions]:
    engine = make_engine(database_url, pool_size=16)
    yield make_sessions(engine)
    engine.dispose()


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    (tmp_path / "roots").mkdir()
    return Settings(
        database_url=database_url,
        data_dir=tmp_path / "data",
        secret_key="k" * 40,
        model_roots=(tmp_path / "roots",),
    )


@pytest.fixture
def client_of(settings: Settings, sessions: Sessions) -> Iterator[Callable[[str], TestClient]]:
    """Makes a client with an API key of the owner."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as anonymous:

        def make(project_id: str) -> TestClient:
            with sessions.begin() as session:
                _, key = keys.create(session, project_id)
            client = TestClient(
                anonymous.app, headers={"Authorization": f"Bearer {key}"}, raise_server_exceptions=False
            )
            client.portal = anonymous.portal  # one event loop, as in a server
            return client

        yield make


@pytest.fixture
def client(client_of: Callable[[str], TestClient]) -> TestClient:
    return client_of(OWNER)


@pytest.fixture
def stranger(client_of: Callable[[str], TestClient]) -> TestClient:
    return client_of("other")


@pytest.fixture
def job_id(sessions: Sessions, recipe: Recipe) -> str:
    """A queued job of OWNER."""
    with sessions.begin() as session:
        return lifecycle.submit(session, OWNER, recipe).id


@pytest.fixture
def held(sessions: Sessions, job_id: str) -> lifecycle.Claim:
    """The job, claimed by worker `w1`."""
    with sessions.begin() as session:
        claim = lifecycle.claim(session, job_id, "w1")
    assert claim is not None
    return claim


@pytest.fixture
def let_lease_end(sessions: Sessions) -> Callable[[str], None]:
    """Moves a job's lease into the past, as a minute of silence does."""

    def end(job_id: str) -> None:
        with sessions.begin() as session:
            past = func.now() - text("interval '1 second'")
            session.execute(update(Job).where(Job.id == job_id).values(lease_until=past))

    return end


@pytest.fixture
def belongings(sessions: Sessions, settings: Settings, recipe: Recipe) -> dict[str, str]:
    """One of everything, of `acme`: the values of path parameters."""
    with sessions.begin() as session:
        job_id = lifecycle.submit(session, "acme", recipe).id
        claim = lifecycle.claim(session, job_id, "w")
        assert claim is not None
        lifecycle.record_log(session, claim, "secret log\n")
        lifecycle.finish(session, claim, "digest", [ArtifactFile("report.json", 2, "0" * 64)])
        endpoint, _ = webhooks.create_endpoint(session, settings.vault, "acme", "https://a.example/", ["job.failed"])
        credentials.put(session, settings.vault, "acme", "hub-main", "hf_secret")
        key, _ = keys.create(session, "acme", name="ours")
    return {
        "job_id": job_id,
        "path": "report.json",
        "endpoint_id": endpoint.id,
        "name": "hub-main",
        "key_id": key.id,
    }
