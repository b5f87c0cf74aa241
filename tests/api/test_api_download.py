"""Downloads from either kind of artifact store: whole, in ranges, resumed, and while the store is away."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dashboard_service import report_of
from fastapi.testclient import TestClient
from fixtures.s3 import BUCKET, S3

from api import lifecycle
from api.auth import Caller
from api.dashboard.snapshot import Watch
from api.files import Bucket, name_of, open_store
from api.files.objects import BLOCK_bytes
from api.lifecycle import ArtifactFile, Claim
from api.main import create_app
from api.settings import Settings
from api.store import keys
from api.store.session import Sessions
from optcore.recipe import recipe_from

pytestmark = pytest.mark.integration

WEIGHTS = os.urandom(BLOCK_bytes + 1000)
CHAIN = {"model": {"id": "org/model"}, "chain": [{"technique": "ptq", "scheme": "nvfp4"}]}
REPORT = report_of(recipe_from(CHAIN | {"calibration": {"dataset": "python-stdlib"}}))
FILES = {
    "model.safetensors": WEIGHTS,
    "report.json": REPORT.to_json().encode(),
    "report.html": b"<p>",
    "empty": b"",
}


@pytest.fixture(params=["folder", "bucket"])
def stored(
    request: pytest.FixtureRequest,
    settings: Settings,
    sessions: Sessions,
    held: Claim,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Settings:
    """Settings of a service whose job has ended with FILES."""
    if request.param == "bucket":
        for name, value in request.getfixturevalue("s3").environ.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{BUCKET}/{tmp_path.parent.name}/{tmp_path.name}"
        settings = settings.model_copy(update={"artifact_store": url, "artifact_store_allow_http": True})
    files = [ArtifactFile(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in FILES.items()]
    for file in files:
        _put(settings, name_of(held.job_id, held.epoch, file.path), FILES[file.path])
    with sessions.begin() as session:
        lifecycle.finish(session, held, "digest", files)
    return settings


def _put(settings: Settings, name: str, data: bytes) -> None:
    if settings.artifact_store:
        return Bucket(settings.artifact_store, allow_http=True).send(name, [data], len(data), "")
    path = settings.artifacts_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def client_at(sessions: Sessions) -> Iterator[Callable[[Settings], TestClient]]:
    opened: list[TestClient] = []

    def make(settings: Settings) -> TestClient:
        with sessions.begin() as session:
            _, key = keys.create(session, "acme")
        headers = {"Authorization": f"Bearer {key}"}
        opened.append(TestClient(create_app(settings), headers=headers, raise_server_exceptions=False).__enter__())
        return opened[-1]

    yield make
    for client in opened:
        client.__exit__(None, None, None)


def test_files_come_whole_and_in_parts(
    stored: Settings, held: Claim, client_at: Callable[[Settings], TestClient]
) -> None:
    client, url = client_at(stored), f"/v1/jobs/{held.job_id}"
    for path, data in FILES.items():
        answer = client.get(f"{url}/artifacts/{path}")
        assert (answer.status_code, answer.content) == (200, data)
        assert answer.headers["content-length"] == str(len(data))
        assert answer.headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
    assert client.get(f"{url}/report").content == FILES["report.json"]
    weights = f"{url}/artifacts/model.safetensors"
    for asked, begin, end in (
        ("bytes=0-0", 0, 1),
        (f"bytes={BLOCK_bytes - 1}-{BLOCK_bytes}", BLOCK_bytes - 1, BLOCK_bytes + 1),
        ("bytes=10-", 10, len(WEIGHTS)),
        ("bytes=-7", len(WEIGHTS) - 7, len(WEIGHTS)),
        (f"bytes=5-{10**17}", 5, len(WEIGHTS)),
    ):
        answer = client.get(weights, headers={"Range": asked})
        assert (answer.status_code, answer.content) == (206, WEIGHTS[begin:end])
        assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/{len(WEIGHTS)}"
        assert answer.headers["content-length"] == str(end - begin)
    for path, size in (("model.safetensors", len(WEIGHTS)), ("empty", 0)):
        answer = client.get(f"{url}/artifacts/{path}", headers={"Range": f"bytes={size}-"})
        assert (answer.status_code, answer.headers["content-range"]) == (416, f"bytes */{size}")
    part = client.get(f"{url}/report", headers={"Range": "bytes=1-4"})
    assert (part.status_code, part.content) == (206, FILES["report.json"][1:5])


def test_a_range_is_for_the_file_that_it_was_meant_for(
    stored: Settings, held: Claim, client_at: Callable[[Settings], TestClient]
) -> None:
    client, url = client_at(stored), f"/v1/jobs/{held.job_id}/artifacts/model.safetensors"
    etag = client.get(url, headers={"Range": "bytes=0-0"}).headers["etag"]
    same = client.get(url, headers={"Range": "bytes=0-9", "If-Range": etag})
    assert (same.status_code, same.content) == (206, WEIGHTS[:10])
    for other in (f'"{"0" * 64}"', f"W/{etag}", "Sat, 21 Nov 2026 15:22:02 GMT"):
        answer = client.get(url, headers={"Range": f"bytes={10**9}-", "If-Range": other})
        assert (answer.status_code, answer.content) == (200, WEIGHTS)


def test_another_size_in_the_store_is_not_served(
    stored: Settings, held: Claim, client_at: Callable[[Settings], TestClient]
) -> None:
    _put(stored, name_of(held.job_id, held.epoch, "model.safetensors"), b"short")
    answer = client_at(stored).get(f"/v1/jobs/{held.job_id}/artifacts/model.safetensors")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_the_dashboard_shows_the_report(stored: Settings, sessions: Sessions, held: Claim) -> None:
    viewer = Caller(project_id="acme", key_id="key", project_name="acme", scopes=frozenset({"jobs:read"}))
    assert Watch(sessions, open_store(stored), stored, viewer, held.job_id).look().values["report"] == REPORT
    _put(stored, name_of(held.job_id, held.epoch, "report.json"), b"gone bad")
    assert Watch(sessions, open_store(stored), stored, viewer, held.job_id).look().values["report"] is None


@pytest.mark.parametrize("stored", ["bucket"], indirect=True)
def test_a_store_that_is_away_is_said_so(
    stored: Settings,
    held: Claim,
    client_at: Callable[[Settings], TestClient],
    monkeypatch: pytest.MonkeyPatch,
    s3: S3,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    client = client_at(stored)
    answer = client.get(f"/v1/jobs/{held.job_id}/artifacts/model.safetensors")
    assert (answer.status_code, answer.json()["code"]) == (503, "artifact_store_away")
    assert not [value for name, value in s3.environ.items() if name.startswith("AWS_") and value in answer.text]
    assert client.get(f"/v1/jobs/{held.job_id}").status_code == 200
