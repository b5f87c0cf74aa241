"""The page of workers: what it shows of them, and nothing of other tenants' jobs."""

from collections.abc import Iterator

import pytest
from dashboard_reader import ATTACK, assert_harmless, assert_named, dashboard, signed_in
from fastapi.testclient import TestClient
from sqlalchemy import func, text, update

from api import lifecycle
from api.settings import Settings
from api.store import workers
from api.store.models import Worker
from api.store.session import Sessions
from api.store.workers import Capacity

pytestmark = pytest.mark.integration


@pytest.fixture
def anonymous(settings: Settings) -> Iterator[TestClient]:
    with dashboard(settings) as client:
        yield client


def test_machines_states_and_ones_own_job(anonymous: TestClient, sessions: Sessions, held: lifecycle.Claim) -> None:
    reader, stranger = signed_in(anonymous, sessions), signed_in(anonymous, sessions, "other")
    assert "No worker is there" in reader.get("/workers").text
    with sessions.begin() as session:
        workers.beat(session, "w1", Capacity("alder", "cuda", 2, "NVIDIA L4", 24 * 10**9), disk_free_bytes=7 * 10**11)
        workers.beat(session, ATTACK, Capacity(ATTACK, "cuda", 1, ATTACK, 1), unfit=ATTACK)
        workers.beat(session, "gone", Capacity("birch", "cpu", cores=4))
        past = func.now() - text("interval '5 minutes'")
        session.execute(update(Worker).where(Worker.id == "gone").values(seen_at=past))
    shown = reader.get("/workers").text
    for said in ("2 × NVIDIA L4", "24 GB each", "700 GB", "busy", "unfit", "1 not heard of", "{{ 7*7 }}"):  # noqa: RUF001
        assert said in shown, said
    assert f'href="/jobs/{held.job_id}"' in shown
    assert_harmless(shown)
    assert held.job_id not in stranger.get("/workers").text
    part = reader.get("/workers", headers={"HX-Request": "true"}).text
    assert "<html" not in part
    assert "NVIDIA L4" in part


def test_it_has_names_and_needs_the_scope(anonymous: TestClient, sessions: Sessions) -> None:
    assert_named(signed_in(anonymous, sessions).get("/workers").text)
    assert anonymous.get("/workers").headers["location"] == "/sign-in?next=/workers"
    keyless = signed_in(anonymous, sessions, scopes=("keys:read",))
    assert keyless.get("/workers").status_code == 403
