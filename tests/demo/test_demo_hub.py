"""The local peer of the Hub, as the real client and a browser see it."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from fixtures.hub import OTHER_TOKEN, OWNER_TOKEN, READER_TOKEN, HubPeer
from huggingface_hub import CommitOperationDelete
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from demo.hub.repository import git_oid

ROOT = Path(__file__).parent.parent.parent


def test_who_am_i(hub: HubPeer) -> None:
    assert hub.api().whoami()["name"] == "me"
    with pytest.raises(HfHubHTTPError) as caught:
        hub.api("hf_nobody").whoami()
    assert caught.value.response.status_code == 401


def test_repositories_come_and_go(hub: HubPeer) -> None:
    api = hub.api()
    assert api.create_repo("me/a", private=True).repo_id == "me/a"
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_repo("me/a")
    assert caught.value.response.status_code == 409
    assert api.create_repo("me/a", exist_ok=True).repo_id == "me/a"
    api.update_repo_settings("me/a", private=False)
    assert hub.api(None).model_info("me/a").private is False
    api.delete_repo("me/a")
    assert not api.repo_exists("me/a")
    with pytest.raises(HfHubHTTPError, match="rights"):
        api.create_repo("other/a")


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_folder_comes_back_identical(hub: HubPeer, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "sent"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "empty.txt").touch()
    (folder / "deep" / "er" / "small.json").write_text("{}")
    (folder / "large.safetensors").write_bytes(os.urandom(9_000_000))
    api = hub.api()
    api.create_repo("me/a", repo_type=kind, private=True)
    first = api.upload_folder(repo_id="me/a", folder_path=folder, repo_type=kind)
    again = api.upload_folder(repo_id="me/a", folder_path=folder, repo_type=kind)
    assert again.oid == first.oid
    got = Path(api.snapshot_download("me/a", repo_type=kind, cache_dir=tmp_path / "cache"))
    assert got.name == first.oid
    for path in folder.rglob("*"):
        if path.is_file():
            assert (got / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_branches_tags_and_history(hub: HubPeer) -> None:
    api, first = hub.api(), hub.put("me/a", {"a.txt": "one"})
    api.create_tag("me/a", tag="v1")
    second = hub.put("me/a", {"a.txt": "two"})
    api.create_branch("me/a", branch="work/x", revision=first)
    assert [commit.commit_id for commit in api.list_repo_commits("me/a")][:2] == [second, first]
    for revision in ("v1", "work/x", first):
        assert api.model_info("me/a", revision=revision).sha == first
        assert [entry.path for entry in api.list_repo_tree("me/a", revision=revision)] == [".gitattributes", "a.txt"]
        assert Path(api.hf_hub_download("me/a", "a.txt", revision=revision)).read_text() == "one"
    api.delete_branch("me/a", branch="work/x")
    api.delete_tag("me/a", tag="v1")
    refs = api.list_repo_refs("me/a")
    assert ([ref.name for ref in refs.branches], refs.tags) == (["main"], [])
    with pytest.raises(RevisionNotFoundError):
        api.model_info("me/a", revision="v1")


def test_a_commit_on_a_moved_branch_is_refused_whole(hub: HubPeer) -> None:
    api, old = hub.api(), hub.put("me/a", {"a.txt": "one"})
    hub.put("me/a", {"b.txt": "two"})
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_commit("me/a", [CommitOperationDelete("a.txt")], commit_message="no", parent_commit=old)
    assert caught.value.response.status_code == 412
    assert "a.txt" in api.list_repo_files("me/a")


def test_files_and_folders_are_deleted(hub: HubPeer) -> None:
    api = hub.api()
    hub.put("me/a", {"a.txt": "x", "d/b.txt": "x", "d/e/c.txt": "x", "da.txt": "x"})
    operations = [CommitOperationDelete("a.txt"), CommitOperationDelete("d/")]
    api.create_commit("me/a", operations, commit_message="less")
    assert api.list_repo_files("me/a") == [".gitattributes", "da.txt"]
    with pytest.raises(RemoteEntryNotFoundError):
        api.create_commit("me/a", operations, commit_message="again")


def test_private_and_gated_repositories_refuse_as_the_hub_does(hub: HubPeer) -> None:
    hub.put("me/private", {"a.txt": "x"}, private=True)
    hub.put("me/gated", {"a.txt": "x"}, gated="manual")
    for token, status in ((OTHER_TOKEN, 404), (None, 401)):
        with pytest.raises(RepositoryNotFoundError) as hidden:
            hub.api(token).model_info("me/private")
        assert hidden.value.response.status_code == status
        assert hub.api(token).model_info("me/gated").gated == "manual"
        with pytest.raises(GatedRepoError) as gated:
            hub.api(token).hf_hub_download("me/gated", "a.txt")
        assert gated.value.response.status_code == (403 if token else 401)
    with pytest.raises(HfHubHTTPError) as read_only:
        hub.api(READER_TOKEN).upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="me/private")
    assert read_only.value.response.status_code == 403


def test_a_card_that_is_no_yaml_is_refused(hub: HubPeer) -> None:
    hub.put("me/a", {})
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        hub.api().upload_file(path_or_fileobj=b"---\n[\n---\n", path_in_repo="README.md", repo_id="me/a")


@pytest.mark.parametrize("path", ["../up", "/etc/x", "a/../../x", ".git/config", "a//b", "a\\b"])
def test_a_path_that_leaves_the_repository_is_refused(hub: HubPeer, path: str) -> None:
    hub.put("me/a", {})
    file = {"path": path, "content": base64.b64encode(b"x").decode()}
    body = json.dumps({"key": "header", "value": {"summary": "x"}}) + "\n" + json.dumps({"key": "file", "value": file})
    answer = httpx.post(
        f"{hub.url}/api/models/me/a/commit/main",
        content=body,
        headers={"Authorization": f"Bearer {OWNER_TOKEN}"},
    )
    assert answer.status_code == 400
    assert hub.api().list_repo_files("me/a") == [".gitattributes"]


def test_an_object_that_is_not_its_hash_is_refused(hub: HubPeer) -> None:
    hub.put("me/a", {})
    batch = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": "0" * 64, "size": 1}]}
    headers = {"Authorization": f"Bearer {OWNER_TOKEN}"}
    answer = httpx.post(f"{hub.url}/me/a.git/info/lfs/objects/batch", json=batch, headers=headers).json()
    href = answer["objects"][0]["actions"]["upload"]["href"]
    assert httpx.put(href, content=b"x").status_code == 400
    assert httpx.put(href.replace("signature=", "signature=f"), content=b"x").status_code == 403
    lines = {"header": {"summary": "x"}, "lfsFile": {"path": "x", "oid": "0" * 64, "size": 1}}
    body = "\n".join(json.dumps({"key": key, "value": value}) for key, value in lines.items())
    missing = httpx.post(f"{hub.url}/api/models/me/a/commit/main", content=body, headers=headers)
    assert missing.status_code == 400


def test_faults_strike_as_often_as_asked(hub: HubPeer) -> None:
    hub.put("me/a", {"a.txt": "x"})
    hub.fail("GET /api/models/me/a", 503, times=2, headers={"Retry-After": "0"})
    codes = [httpx.get(f"{hub.url}/api/models/me/a").status_code for _ in range(3)]
    assert codes == [503, 503, 200]
    hub.fail("POST .*/commit", 504, after=True)
    with pytest.raises(HfHubHTTPError):
        hub.api().upload_file(path_or_fileobj=b"x", path_in_repo="b.txt", repo_id="me/a")
    assert "b.txt" in hub.api().list_repo_files("me/a")


def test_names_of_content_are_gits(tmp_path: Path) -> None:
    assert git_oid(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_a_person_sees_the_files(hub: HubPeer) -> None:
    commit = hub.put("me/a", {"<b>.txt": "x"})
    hub.put("me/private", {"a.txt": "x"}, private=True)
    page = httpx.get(f"{hub.url}/me/a").text
    assert "&lt;b&gt;.txt" in page
    assert commit[:12] in httpx.get(f"{hub.url}/me/a/tree/{commit}").text
    assert "me/private" not in httpx.get(f"{hub.url}/").text
    hidden = httpx.get(f"{hub.url}/me/private")
    assert (hidden.status_code, hidden.headers["www-authenticate"][:5]) == (401, "Basic")
    assert "a.txt" in httpx.get(f"{hub.url}/me/private", auth=("me", OWNER_TOKEN)).text


PROGRAM = """
import sys
from pathlib import Path
from huggingface_hub import HfApi
folder, cache = map(Path, sys.argv[1:])
api = HfApi()
api.create_repo("demo/x", private=True, exist_ok=True)
api.upload_folder(repo_id="demo/x", folder_path=folder)
got = Path(api.snapshot_download("demo/x", cache_dir=cache))
assert (got / "large.safetensors").read_bytes() == (folder / "large.safetensors").read_bytes()
"""


@pytest.mark.parametrize("xet", ["0", "1"])
def test_the_command_serves_a_client_that_knows_only_its_address(tmp_path: Path, xet: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "large.safetensors").write_bytes(os.urandom(11_000_000))
    command = [sys.executable, "-m", "demo.hub", "--root", str(tmp_path / "root")]
    environment = {**os.environ, "DEMO_HUB_TOKEN": "demo:hf_demo"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as peer:
        try:
            assert peer.stdout is not None
            address = peer.stdout.readline().strip()
            client = {**os.environ, "HF_ENDPOINT": address, "HF_TOKEN": "hf_demo", "HF_HUB_DISABLE_XET": xet}
            arguments = [sys.executable, "-c", PROGRAM, tmp_path / "folder", tmp_path / "cache"]
            done = subprocess.run(arguments, env=client, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        finally:
            peer.terminate()
    assert len(list((tmp_path / "root" / "lfs").iterdir())) == 1


def test_a_name_that_is_no_name_is_refused(hub: HubPeer) -> None:
    headers = {"Authorization": f"Bearer {OWNER_TOKEN}"}
    for name in ("a--b", "..", "a/../../b", ""):
        body = {"name": name, "organization": "me"}
        assert httpx.post(f"{hub.url}/api/repos/create", json=body, headers=headers).status_code == 400
