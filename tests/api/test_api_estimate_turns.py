"""Estimates wait for the Hub in threads of their own, few of a project at once; what failed is not asked again soon."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
from dashboard_reader import dashboard, signed_in
from fastapi.testclient import TestClient
from fixtures.hub import HubPeer

import api.estimates.outlines
import optcore.sources.client
from api.errors import ServiceError, TooManyRequests, Unavailable
from api.estimates.turns import MOST, THREADS, MOST_of_a_project, Turns
from api.settings import Settings
from api.store.session import Sessions

ASKED: dict[str, Any] = {"model": {"id": "me/away"}, "chain": [{"technique": "ptq", "scheme": "nvfp4"}]}


async def _refused(turns: Turns, project_id: str) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        await turns.run(project_id, lambda: None)
    assert caught.value.headers == {"Retry-After": "5"}
    return caught.value


def test_a_project_has_few_turns_and_all_of_them_have_a_limit() -> None:
    go, at_work, most = threading.Event(), 0, 0

    def work() -> None:
        nonlocal at_work, most
        at_work, most = at_work + 1, max(most, at_work + 1)
        go.wait(10)
        at_work -= 1

    async def walk() -> None:
        turns = Turns()
        async with anyio.create_task_group() as tasks:
            for number in range(MOST):
                tasks.start_soon(turns.run, f"p{number // MOST_of_a_project}", work)
            await anyio.wait_all_tasks_blocked()
            assert isinstance(await _refused(turns, "p0"), TooManyRequests)
            assert isinstance(await _refused(turns, "another"), Unavailable)
            go.set()
        await turns.run("p0", lambda: None)

    anyio.run(walk)
    assert 0 < most <= THREADS


@pytest.fixture
def slow_hub(hub: HubPeer, monkeypatch: pytest.MonkeyPatch) -> HubPeer:
    monkeypatch.setattr(optcore.sources.client, "WAITS_seconds", ())
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    return hub


@pytest.mark.integration
def test_a_slow_hub_stops_nobody_else(client: TestClient, stranger: TestClient, slow_hub: HubPeer) -> None:
    slow_hub.fail("GET /api/models", 503, times=100, delay_seconds=1)
    asked: Callable[[int], Any] = lambda _: client.post("/v1/jobs/estimate", json=ASKED)  # noqa: E731
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(asked, range(50)))
        assert stranger.get("/v1/jobs").status_code == 200
    turned_away = [one for one in answers if one.status_code == 429]
    assert turned_away
    assert turned_away[0].headers["retry-after"] == "5"
    assert len(slow_hub.requests) <= len(answers) - len(turned_away)


@pytest.mark.integration
def test_what_failed_is_not_asked_again_at_once(
    client: TestClient, slow_hub: HubPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_hub.fail("GET /api/models", 503, times=100)
    said = [client.post("/v1/jobs/estimate", json=ASKED).json()["problems"][0]["reason"] for _ in range(3)]
    assert said == [said[0]] * 3
    assert len(slow_hub.requests) == 1
    monkeypatch.setattr(api.estimates.outlines, "FAILED_seconds", 0.0)
    client.post("/v1/jobs/estimate", json=ASKED)
    assert len(slow_hub.requests) == 2


@pytest.mark.integration
def test_the_hub_is_not_waited_for_for_ever(
    client: TestClient, slow_hub: HubPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.estimates.outlines, "PATIENCE_seconds", 0.2)
    slow_hub.put("me/away", {"config.json": "{}", "tokenizer.json": "{}", "model.safetensors": b"x"})
    slow_hub.fail("GET /api/models", 200, delay_seconds=0.3)
    found = client.post("/v1/jobs/estimate", json=ASKED).json()
    assert "too slowly" in found["problems"][0]["reason"]


@pytest.mark.integration
def test_forms_count_as_requests_with_the_key(settings: Settings, sessions: Sessions) -> None:
    with dashboard(settings.model_copy(update={"rate_limit": "2/minute"})) as anonymous:
        reader = signed_in(anonymous, sessions)
        answers = [reader.post("/new/estimate", data={"recipe": "name: x"}) for _ in range(3)]
        assert [one.status_code for one in answers] == [200, 200, 429]
        assert "retry-after" in answers[2].headers
        assert reader.get("/jobs").status_code != 429, "a page may be looked at"
