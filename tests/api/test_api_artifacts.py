"""Files of a finished job: listed, served whole and in ranges, and nothing beside them."""

import hashlib
import os
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from api import lifecycle
from api.lifecycle import ArtifactFile, Claim
from api.settings import Settings
from api.store.session import Sessions

pytestmark = pytest.mark.integration
FILES = {
    "config.json": b"{}",
    "model-00001.safetensors": bytes(range(256)) * 1000,
    "plots/a b.svg": b"<svg onload='alert(1)'/>",
    "report.html": b"<p>before and after</p>",
    "report.json": b'{"kl": 0.01}',
}


@pytest.fixture
def folder(settings: Settings, sessions: Sessions, held: Claim) -> Path:
    """The finished job's files on disk; one of them is not registered."""
    folder = settings.artifacts_dir / held.job_id / str(held.epoch)
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "unregistered.txt").write_text("secret")
    registered = [ArtifactFile(n, len(d), hashlib.sha256(d).hexdigest()) for n, d in FILES.items()]
    registered.append(ArtifactFile("../escape.txt", 6, "a" * 64))
    registered.append(ArtifactFile("link", 6, "a" * 64))
    (folder.parent / "escape.txt").write_text("secret")
    os.symlink(folder.parent / "escape.txt", folder / "link")
    with sessions.begin() as session:
        lifecycle.finish(session, held, "digest", registered)
    return folder


@pytest.fixture
def url(folder: Path, held: Claim) -> str:
    return f"/v1/jobs/{held.job_id}"


def test_before_success_there_is_nothing(client: TestClient, held: Claim) -> None:
    url = f"/v1/jobs/{held.job_id}"
    assert client.get(f"{url}/artifacts").json()["data"] == []
    answer = client.get(f"{url}/report")
    assert (answer.status_code, answer.json()["detail"]) == (404, "the job has no report: it is running")


def test_list_then_download_each(client: TestClient, url: str) -> None:
    listed = {row["path"]: row for row in client.get(f"{url}/artifacts").json()["data"]}
    for path, data in FILES.items():
        answer = client.get(f"{url}/artifacts/{path}")
        assert (answer.status_code, answer.content) == (200, data)
        assert hashlib.sha256(answer.content).hexdigest() == listed[path]["sha256"] == answer.headers["etag"].strip('"')
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"].startswith("attachment")


def test_pages_of_files(client: TestClient, url: str) -> None:
    first = client.get(f"{url}/artifacts", params={"limit": 3}).json()
    rest = client.get(f"{url}/artifacts", params={"after": first["last_id"]}).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    paths = [row["path"] for row in first["data"] + rest["data"]]
    assert paths == sorted(paths)
    assert set(FILES) < set(paths)


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1000-1999", 1000, 2000),
        ("bytes=255990-", 255990, 256000),
        ("bytes=-5", 255995, 256000),
    ],
)
def test_ranges(client: TestClient, url: str, asked: str, begin: int, end: int) -> None:
    name = "model-00001.safetensors"
    answer = client.get(f"{url}/artifacts/{name}", headers={"Range": asked})
    assert (answer.status_code, answer.content) == (206, FILES[name][begin:end])
    assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/256000"


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("bytes=256000-", 416),
        ("bytes=-0", 416),
        ("bytes=5-1", 400),
        ("bytes=0-1,3-4", 400),
        ("bytes=-", 400),
        ("lines=1-2", 400),
        ("bytes=" + "9" * 500 + "-", 400),
    ],
)
def test_ranges_that_cannot_be(client: TestClient, url: str, asked: str, status: int) -> None:
    answer = client.get(f"{url}/artifacts/model-00001.safetensors", headers={"Range": asked})
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert status == 400 or answer.headers["content-range"] == "bytes */256000"


@pytest.mark.parametrize(
    "path",
    [
        "unregistered.txt",
        "..%2fescape.txt",
        "%2e%2e/escape.txt",
        "link",
        "%2fetc%2fpasswd",
        "/etc/passwd",
        "plots",
        "",
        "config.json%00",
        "./config.json",
        "plots/../config.json",
        "x" * 5000,
    ],
)
def test_nothing_else_is_served(client: TestClient, url: str, path: str) -> None:
    answer = client.get(f"{url}/artifacts/{path}")
    assert answer.status_code in {200, 404}
    assert b"secret" not in answer.content
    # The test's HTTP client itself folds dots in a path; the answer is then a registered file, or the list.
    assert answer.status_code == 404 or answer.content in FILES.values() or answer.json()["object"] == "list"


def test_a_file_that_changed_on_disk_is_not_served(client: TestClient, url: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(b"{ }")
    (folder / "report.json").unlink()
    for place in ("artifacts/config.json", "report"):
        assert client.get(f"{url}/{place}").status_code == 404


def test_the_report_is_json_for_programs_and_a_harmless_page_for_people(client: TestClient, url: str) -> None:
    assert client.get(f"{url}/report").json() == {"kl": 0.01}
    page = client.get(f"{url}/report", headers={"Accept": "text/html,*/*"})
    assert (page.content, page.headers["content-type"]) == (FILES["report.html"], "text/html; charset=utf-8")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "sandbox" in policy
    assert "script" not in policy
