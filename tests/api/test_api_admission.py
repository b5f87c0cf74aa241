"""What a recipe may touch on this machine, and which credential it may name."""

import os
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.main import create_app
from api.settings import Settings

pytestmark = pytest.mark.integration


def _post(client: TestClient, document: dict[str, Any], path: str) -> Any:
    return client.post("/v1/jobs", json=document | {"model": {"path": path}})


@pytest.fixture
def model(tmp_path: Path, settings: Settings) -> Path:
    folder = tmp_path / "roots" / "tiny"
    folder.mkdir()
    return folder


def test_a_path_below_a_root_is_kept_absolute(client: TestClient, document: dict[str, Any], model: Path) -> None:
    for path in (str(model), "tiny", "./tiny/../tiny"):
        answer = _post(client, document, path)
        assert answer.status_code == 201
        assert answer.json()["recipe"]["model"]["path"] == str(model.resolve())


def test_an_absent_folder_is_the_engines_own_error(client: TestClient, document: dict[str, Any], model: Path) -> None:
    for path in ("absent", f"{model}/absent", "x" * 3000):
        answer = _post(client, document, path)
        assert (answer.status_code, answer.json()["code"]) == (422, "source_not_found")
        assert answer.json()["errors"][0]["pointer"] == "/model/path"


def test_paths_that_leave_the_roots_are_refused_whether_they_exist_or_not(
    client: TestClient, document: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").mkdir()
    os.symlink(tmp_path / "secret", model / "link")
    os.symlink(model / "loop", model / "loop")
    for path in (
        "/etc",
        "/absent",
        "../secret",
        str(model / "link"),
        "tiny/link/x",
        "tiny/../../secret",
        f"{model.parent}-2",
    ):
        answer = _post(client, document, path)
        assert (answer.status_code, answer.json()["code"]) == (422, "path_not_allowed"), path
        assert answer.json()["remedy"]
    assert _post(client, document, str(model / "loop")).json()["code"] == "source_not_found"


def test_a_calibration_file_is_held_to_the_same(client: TestClient, document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "roots" / "text.txt").write_text("hello")
    for path, status in (("text.txt", 201), ("/etc/passwd", 422)):
        answer = client.post("/v1/jobs", json=document | {"calibration": {"path": path}})
        assert answer.status_code == status
    assert answer.json()["errors"][0]["pointer"] == "/calibration/path"


def test_a_file_of_labels_is_held_to_the_same(client: TestClient, document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "roots" / "labels.csv").write_text("text,label\ngood,1\n")
    for path, status in (("labels.csv", 201), ("/etc/passwd", 422)):
        measured = [{"evaluator": "throughput"}, {"evaluator": "classification", "path": path}]
        answer = client.post("/v1/jobs", json=document | {"evaluate": measured})
        assert answer.status_code == status, answer.json()
    assert answer.json()["errors"][0]["pointer"] == "/evaluate/1/path"


@pytest.mark.parametrize("inside", ["teacher", "data", "fallback"])
def test_what_training_reads_is_held_to_the_same(
    client: TestClient, document: dict[str, Any], model: Path, tmp_path: Path, inside: str
) -> None:
    """A teacher, training text, and those of a fallback: wherever in the chain they stand."""
    (tmp_path / "roots" / "text.jsonl").write_text('{"text": "hello"}\n')
    ptq: dict[str, Any] = {"technique": "ptq", "scheme": "int4"}
    for good in (True, False):
        teacher = {"path": str(model) if good else "/etc"}
        data = {"path": "text.jsonl" if good else "/etc/passwd"}
        qad = {"technique": "qad", **({"data": data} if inside != "teacher" else {"teacher": teacher})}
        gate = {"metric": "kl", "max": 0.1, "on_fail": "fallback"}
        chain = [ptq | {"gate": gate, "fallback": [{"scheme": "fp8"}, qad]}] if inside == "fallback" else [ptq, qad]
        answer = client.post("/v1/jobs", json=document | {"chain": chain})
        assert answer.status_code == (201 if good else 422), answer.json()
    places = {
        "teacher": "/chain/1/teacher/path",
        "data": "/chain/1/data/path",
        "fallback": "/chain/0/fallback/1/data/path",
    }
    assert answer.json()["code"] == "path_not_allowed"
    assert answer.json()["errors"][0]["pointer"] == places[inside]


def test_models_to_merge_are_held_to_the_same(client: TestClient, document: dict[str, Any], model: Path) -> None:
    for path, status in ((str(model), 201), ("/etc", 422)):
        others = [{"model": {"id": "org/model"}}, {"model": {"path": path}}]
        chain = [{"technique": "merge", "others": others}, {"technique": "ptq", "scheme": "int4"}]
        answer = client.post("/v1/jobs", json=document | {"chain": chain})
        assert answer.status_code == status, answer.json()
    assert answer.json()["code"] == "path_not_allowed"
    assert answer.json()["errors"][0]["pointer"] == "/chain/0/others/1/model/path"


def test_without_roots_there_are_no_local_paths(
    settings: Settings, client: TestClient, document: dict[str, Any], model: Path
) -> None:
    with TestClient(create_app(settings.model_copy(update={"model_roots": ()})), headers=client.headers) as closed:
        assert _post(closed, document, str(model)).json()["code"] == "path_not_allowed"


def test_the_credential_must_be_the_owners_own(
    client: TestClient, stranger: TestClient, document: dict[str, Any]
) -> None:
    publish = document | {"publish": {"repo_id": "me/x", "credential": "hub"}}
    stranger.put("/v1/credentials/hub", json={"token": "hf_theirs"})
    answer = client.post("/v1/jobs", json=publish)
    assert (answer.status_code, answer.json()["code"]) == (422, "credential_unknown")
    assert answer.json()["errors"][0]["pointer"] == "/publish/credential"
    client.put("/v1/credentials/hub", json={"token": "hf_mine"})
    assert client.post("/v1/jobs", json=publish).status_code == 201
