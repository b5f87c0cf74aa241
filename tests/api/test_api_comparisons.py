"""Jobs side by side: what differs, what came out, which results no other one beats; and nothing of other tenants."""

from collections.abc import Callable
from typing import Any

import pytest
from compared_jobs import finished, report
from fastapi.testclient import TestClient

from api.comparison.differences import differences
from api.settings import Settings
from api.store.session import Sessions

pytestmark = pytest.mark.integration

Make = Callable[..., str]
FP8 = {"technique": "ptq", "scheme": "fp8"}


@pytest.fixture
def make(sessions: Sessions, settings: Settings, document: dict[str, Any]) -> Make:
    """A finished job; keywords change its report, `asked` its recipe."""

    def made(asked: dict[str, Any] | None = None, project_id: str = "acme", **changes: Any) -> str:
        return finished(sessions, settings, {**document, **(asked or {})}, report(**changes).to_json(), project_id)

    return made


def compared(client: TestClient, *ids: str) -> dict[str, Any]:
    answer = client.get("/v1/comparisons", params={"job": list(ids)})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_what_differs_and_what_came_out(client: TestClient, make: Make) -> None:
    ids = make(), make({"chain": [FP8], "name": "fine"}, size=8e9, kl=0.01, speed=100.0)
    found = compared(client, *ids)
    assert [job["id"] for job in found["jobs"]] == list(ids), "in the order that was asked for"
    assert {each["pointer"]: each["values"] for each in found["differences"]} == {
        "/name": ["fast", "fine"],
        "/chain/0/scheme": ["nvfp4", "fp8"],
    }
    rows = {row["name"]: row for row in found["measurements"]}
    assert (rows["weight_bytes"]["results"], rows["weight_bytes"]["best"]) == ([5e9, 8e9], 0)
    assert (rows["decode_speed"]["results"], rows["decode_speed"]["best"]) == ([90, 100], 1)
    assert rows["mean_kl"]["sources"] == [None, None]
    assert found["notices"] == []
    job = found["jobs"][1]
    assert (job["weight_bytes"], job["quality"], job["tokens_per_second"]) == (8e9, 0.01, 100)
    assert job["summary"] == "NVFP4 W4A4, blocks of 16"


def test_the_front_is_what_no_other_one_beats(client: TestClient, make: Make) -> None:
    small, fine = make(), make(size=8e9, kl=0.01, speed=100.0)
    beaten, mute = make(size=8e9, kl=0.02, speed=100.0), make(size=9e9, kl=None, speed=None)
    foreign = make(size=9e9, kl=0.9, speed=1.0, source_digest="b" * 64)
    jobs = {job["id"]: job for job in compared(client, small, fine, beaten, mute, foreign)["jobs"]}
    assert [job for job in jobs if jobs[job]["on_front"]] == [small, fine, foreign]
    assert jobs[beaten]["dominated_by"] == [fine]
    assert jobs[mute]["dominated_by"] == [small, fine, beaten], "held against them in what both measured"


def test_only_what_compares_is_ranked(client: TestClient, make: Make) -> None:
    """By size what has one source, by quality what has one text besides, by speed what has one hardware."""
    worse, better = {"size": 9e9, "kl": 0.1, "speed": 10.0}, {"size": 1e9, "kl": 0.001, "speed": 900.0}
    text = make(**better, data_digest="f" * 64)
    hardware = make(**better, environment={"hardware": "aarch64"})
    source = make(**better, source_digest="b" * 64)
    found = compared(client, make(), make(**worse), text, hardware, source)
    rows = {row["name"]: (row["comparable"], row["best"]) for row in found["measurements"]}
    assert rows == {
        "weight_bytes": ([True, True, True, True, False], 2),
        "mean_kl": ([True, True, False, True, False], 3),
        "decode_speed": ([True, True, True, False, False], 2),
    }
    assert [found[key]["name"] for key in ("quality_measure", "speed_measure")] == ["mean_kl", "decode_speed"]
    assert found["quality_measure"]["unit"] == "nats/token"


def test_equal_results_beat_nobody_and_none_is_best(client: TestClient, make: Make) -> None:
    found = compared(client, make(), make())
    assert all(job["on_front"] for job in found["jobs"])
    assert {row["best"] for row in found["measurements"]} == {None}
    assert found["differences"] == []


def test_a_classifier_is_judged_by_the_accuracy_that_it_lost(client: TestClient, make: Make) -> None:
    rows = [{"name": "accuracy", "title": "Accuracy", "unit": "share", "better": "higher"}]
    lost = make(measurements=[{**rows[0], "source": 0.9, "result": 0.75}])
    kept = make(measurements=[{**rows[0], "source": 0.9, "result": 0.9}])
    jobs = compared(client, lost, kept)["jobs"]
    assert [round(job["quality"], 6) for job in jobs] == [0.15, 0.0]
    assert [job["on_front"] for job in jobs] == [False, True]


def test_different_quantities_are_not_ranked(client: TestClient, make: Make) -> None:
    def row(name: str, result: float, better: str = "higher") -> dict[str, Any]:
        source = 0.9 if name == "accuracy" else None
        return {"name": name, "title": name, "unit": "", "better": better, "source": source, "result": result}

    small, large = row("weight_bytes", 5e9, "lower"), row("weight_bytes", 8e9, "lower")
    by_kl = make(measurements=[small, row("mean_kl", 0.01, "lower"), row("prefill_speed", 9e3)])
    by_accuracy = make(measurements=[large, row("accuracy", 0.8), row("decode_speed", 90)])
    found = compared(client, by_kl, by_accuracy)
    assert [(job["on_front"], job["quality"], job["tokens_per_second"]) for job in found["jobs"]] == [
        (True, None, None),
        (True, None, None),
    ]
    assert found["notices"] == [
        "Quality was measured by mean_kl, accuracy, and by none of them for all: it does not compare.",
        "Speed was measured by prefill_speed, decode_speed, and by none of them for all: it does not compare.",
    ]
    slow = make(measurements=[large, row("prefill_speed", 8e3)])
    both = make(measurements=[small, row("decode_speed", 1), row("prefill_speed", 9e3)])
    jobs = compared(client, slow, both)["jobs"]
    assert [(job["on_front"], job["tokens_per_second"]) for job in jobs] == [(False, 8e3), (True, 9e3)]


def test_quality_of_different_text_beats_nobody(client: TestClient, make: Make) -> None:
    one, other = make(), make(size=8e9, kl=0.04, speed=80.0, data_digest="f" * 64)
    found = compared(client, one, other)
    assert [job["on_front"] for job in found["jobs"]] == [True, True]
    assert "different text" in found["notices"][0]


def test_speed_on_different_hardware_beats_nobody(client: TestClient, make: Make) -> None:
    slower = {"size": 8e9, "kl": 0.04, "speed": 80.0}
    jobs = compared(client, make(), make(**slower), make(**slower, environment={"hardware": "aarch64"}))["jobs"]
    assert [job["on_front"] for job in jobs] == [True, False, True]


def test_what_makes_numbers_incomparable_is_told(client: TestClient, make: Make, job_id: str) -> None:
    other = make(
        {"evaluate": []},
        source_digest="b" * 64,
        data_digest="f" * 64,
        environment={"hardware": "aarch64", "torch": "2.12.0"},
    )
    notices = compared(client, make(), other, job_id)["notices"]
    for said in ("is queued", "different sources", "aarch64", "different text", "evaluators", "versions of torch"):
        assert any(said in notice for notice in notices), said
    assert len(notices) == 6


def test_other_tenants_jobs_are_not_there(client: TestClient, stranger: TestClient, make: Make) -> None:
    ours, theirs = make(), make(project_id="other")
    for who, ids in ((client, (ours, theirs)), (stranger, (ours, theirs)), (client, (ours, "job_" + "0" * 26))):
        answer = who.get("/v1/comparisons", params={"job": ids})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("count", [0, 1, 13])
def test_two_to_twelve_jobs_are_compared(client: TestClient, count: int) -> None:
    ids = [f"job_{number:026d}" for number in range(count)]
    assert client.get("/v1/comparisons", params={"job": ids}).status_code == 400


def test_a_job_is_not_compared_with_itself(client: TestClient, job_id: str) -> None:
    assert client.get("/v1/comparisons", params={"job": [job_id, job_id]}).status_code == 400
    assert client.get("/v1/comparisons", params={"job": [job_id, "x" * 65]}).status_code == 400
    assert client.get("/v1/comparisons", params={"job": [job_id, "\0"]}).status_code == 404


NAN = '"result": NaN'
HOSTILE: dict[str, bytes] = {
    "huge": b" " * 4_000_001,
    "deep": b"[" * 100_000,
    "no JSON": b"\xff\xfe",
    "another document": b'{"version": 1}',
    "empty": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_report_that_cannot_be_read_costs_its_numbers_alone(
    client: TestClient, make: Make, sessions: Sessions, settings: Settings, document: dict[str, Any], name: str
) -> None:
    bad = finished(sessions, settings, document, HOSTILE[name])
    found = compared(client, make(), bad)
    assert found["jobs"][1]["weight_bytes"] is None
    assert not found["jobs"][1]["on_front"]
    assert [row["results"][1] for row in found["measurements"]] == [None] * 3
    assert "has no report that can be read" in found["notices"][0]


def test_numbers_that_are_none_are_not_held_against_others(
    client: TestClient, make: Make, sessions: Sessions, settings: Settings, document: dict[str, Any]
) -> None:
    text = report(size=1.0).to_json().replace('"result": 1.0', NAN).replace('"result": 0.03', '"result": Infinity')
    found = compared(client, make(), finished(sessions, settings, document, text))
    rows = {row["name"]: row for row in found["measurements"]}
    assert rows["weight_bytes"]["results"] == [5e9, None]
    assert rows["mean_kl"]["results"] == [0.03, None]
    assert rows["weight_bytes"]["best"] is None


def test_reports_whose_files_are_gone_are_none(client: TestClient, make: Make, settings: Settings) -> None:
    ids = make(), make()
    settings.artifacts_dir.rename(settings.artifacts_dir.with_name("gone"))
    assert [job["quality"] for job in compared(client, *ids)["jobs"]] == [None, None]


def test_differences_are_the_smallest_places_that_differ() -> None:
    first = {"a/b": {"~": 1}, "chain": [{"technique": "ptq", "x": 1}, {"technique": "qad", "y": 2}], "same": [1]}
    second = {"a/b": {"~": 2}, "chain": [{"technique": "ptq", "x": 2}, {"technique": "prune"}, {"z": 0}], "same": [1]}
    found = {each.pointer: each.values for each in differences([first, second])}
    assert found == {
        "/a~1b/~0": (1, 2),
        "/chain/0/x": (1, 2),
        "/chain/1": ({"technique": "qad", "y": 2}, {"technique": "prune"}),
        "/chain/2": (None, {"z": 0}),
    }
