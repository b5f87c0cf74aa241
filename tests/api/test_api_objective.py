"""Goals and sweeps through the service: taken like any recipe, kept as they were sent, refused by their field."""

from typing import Any

from fastapi.testclient import TestClient

from api.dashboard import words
from lathe.models import Job
from optcore.recipe import recipe_from


def test_a_goal_is_a_job(client: TestClient, document: dict[str, Any]) -> None:
    asked = {**document, "chain": [], "objective": {"max_kl": 0.1, "budget": {"candidates": 3}}}
    asked["evaluate"] = [{"evaluator": "fidelity"}]
    answer = client.post("/v1/jobs", json=asked)
    assert answer.status_code == 201, answer.text
    job = Job.model_validate(client.get(f"/v1/jobs/{answer.json()['id']}").json())
    assert job.recipe == recipe_from(asked)
    assert words.chain(job) == "a goal"
    assert client.get("/v1/jobs").json()["data"][0]["recipe"]["objective"]["max_kl"] == 0.1


def test_a_bad_candidate_and_a_bad_sweep_are_answered_with_their_place(
    client: TestClient, document: dict[str, Any]
) -> None:
    base = {**document, "evaluate": [{"evaluator": "fidelity"}]}
    bad = {"objective": {"candidates": [[{"technique": "qad"}]]}, "chain": []}
    sweep = {"chain": [{"technique": "ptq", "scheme": "fp8"}], "sweep": {"/chain/0/scheme": ["fp8", "fp7"]}}
    for changes, pointer in ((bad, "/objective/candidates/0/0"), (sweep, "/sweep/~1chain~10~1scheme/1")):
        answer = client.post("/v1/jobs", json={**base, **changes})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == pointer


def test_a_candidate_reads_no_folder_that_it_may_not(client: TestClient, document: dict[str, Any]) -> None:
    spy = [{"technique": "distill", "teacher": {"path": "/etc"}}, {"technique": "ptq", "scheme": "fp8"}]
    answer = client.post("/v1/jobs", json={**document, "chain": [], "objective": {"candidates": [spy]}})
    assert answer.status_code == 422
    assert answer.json()["code"] == "path_not_allowed"
    assert answer.json()["errors"][0]["pointer"] == "/objective/candidates/0/0/teacher/path"
