"""Pull requests of the local peer, as the real client opens, fills, merges and closes them."""

import os

import httpx
import pytest
from fixtures.hub import OTHER_TOKEN, OWNER_TOKEN, READER_TOKEN, HubPeer
from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import HfHubHTTPError


def _refused(status: int) -> pytest.RaisesExc[HfHubHTTPError]:
    return pytest.RaisesExc(HfHubHTTPError, check=lambda error: error.response.status_code == status)


def test_a_draft_is_filled_published_and_merged(hub: HubPeer) -> None:
    before = hub.put("me/a", {"a.txt": "one", "old.txt": "x"})
    api = hub.api()
    opened = api.create_pull_request("me/a", title="Newer", description="because")
    assert (opened.num, opened.status, opened.is_pull_request) == (1, "draft", True)
    weights = os.urandom(5_000_000)
    operations = [
        CommitOperationAdd("a.txt", b"two"),
        CommitOperationAdd("m.safetensors", weights),
        CommitOperationDelete("old.txt"),
    ]
    pushed = api.create_commit("me/a", operations, commit_message="two", revision="refs/pr/1", parent_commit=before)
    assert api.list_repo_files("me/a", revision="refs/pr/1") == [".gitattributes", "a.txt", "m.safetensors"]
    assert api.model_info("me/a").sha == before, "nothing is visible before the merge"
    with _refused(400):
        api.merge_pull_request("me/a", 1)
    assert api.change_discussion_status("me/a", 1, "open").new_status == "open"
    api.merge_pull_request("me/a", 1)
    merged = api.get_discussion_details("me/a", 1)
    head = api.list_repo_commits("me/a")[0]
    assert (merged.status, merged.merge_commit_oid) == ("merged", head.commit_id)
    assert (head.title, pushed.oid in head.message) == ("Newer (#1)", True)
    assert api.list_repo_files("me/a") == [".gitattributes", "a.txt", "m.safetensors"]
    with _refused(400):
        api.merge_pull_request("me/a", 1)


def test_a_commit_opens_one_against_its_branch(hub: HubPeer) -> None:
    api, start = hub.api(), hub.put("me/a", {"a.txt": "one"})
    api.create_branch("me/a", branch="v2")
    made = api.create_commit(
        "me/a", [CommitOperationAdd("b.txt", b"b")], commit_message="Add b", revision="v2", create_pr=True
    )
    assert (made.pr_num, made.pr_revision, made.pr_url) == (1, "refs/pr/1", f"{hub.url}/me/a/discussions/1")
    details = api.get_discussion_details("me/a", 1)
    assert (details.status, details.target_branch, details.title) == ("open", "refs/heads/v2", "Add b")
    assert [commit.commit_id for commit in api.list_repo_commits("me/a", revision="refs/pr/1")][:2] == [made.oid, start]
    assert httpx.get(f"{hub.url}/me/a/discussions/1").status_code == 200
    refs = api.list_repo_refs("me/a", include_pull_requests=True).pull_requests
    assert [(ref.ref, ref.target_commit) for ref in refs or []] == [("refs/pr/1", made.oid)]
    api.merge_pull_request("me/a", 1)
    assert "b.txt" in api.list_repo_files("me/a", revision="v2")
    assert api.model_info("me/a").sha == start


def test_a_refused_commit_opens_none(hub: HubPeer) -> None:
    hub.put("me/a", {})
    with pytest.raises(HfHubHTTPError):
        hub.api().create_commit("me/a", [CommitOperationDelete("no")], commit_message="less", create_pr=True)
    assert list(hub.api().get_repo_discussions("me/a")) == []


def test_a_conflict_is_named_and_not_merged(hub: HubPeer) -> None:
    hub.put("me/a", {"a.txt": "one"})
    api = hub.api()
    for content in (b"two", b"three"):
        operations = [CommitOperationAdd("a.txt", content), CommitOperationAdd(f"{content.decode()}.txt", b"x")]
        api.create_commit("me/a", operations, commit_message="change", create_pr=True)
    api.merge_pull_request("me/a", 1)
    assert api.get_discussion_details("me/a", 2).conflicting_files == ["a.txt"]
    with _refused(409):
        api.merge_pull_request("me/a", 2)
    api.change_discussion_status("me/a", 2, "closed", comment="superseded")
    assert [(one.num, one.status) for one in api.get_repo_discussions("me/a")] == [(2, "closed"), (1, "merged")]
    assert [one.num for one in api.get_repo_discussions("me/a", discussion_status="open", author="me")] == []
    assert "three.txt" not in api.list_repo_files("me/a")


def test_anybody_may_propose_and_only_the_owner_merges(hub: HubPeer) -> None:
    hub.put("me/a", {"a.txt": "one"})
    hub.put("me/private", {"a.txt": "one"}, private=True)
    other = hub.api(OTHER_TOKEN)
    add = [CommitOperationAdd("b.safetensors", os.urandom(1000))]
    assert other.create_commit("me/a", list(add), commit_message="b", create_pr=True).pr_num == 1
    more = [CommitOperationAdd("c.txt", b"c")]
    other.create_commit("me/a", more, commit_message="c", revision="refs/pr/1")
    with _refused(403):
        other.merge_pull_request("me/a", 1)
    for token, id, status in ((READER_TOKEN, "me/a", 403), (OTHER_TOKEN, "me/private", 404), (None, "me/a", 401)):
        with _refused(status):
            hub.api(token).create_pull_request(id, title="mine")
    hub.api(OWNER_TOKEN).merge_pull_request("me/a", 1)
    assert {"b.safetensors", "c.txt"} <= set(other.list_repo_files("me/a"))


def test_a_connection_is_cut_in_the_middle_of_a_body(hub: HubPeer) -> None:
    hub.put("me/a", {})
    hub.fail("POST /api/models/me/a/commit/main", 500, cut_after_bytes=1000)
    with pytest.raises(httpx.RemoteProtocolError):
        hub.api().create_commit("me/a", [CommitOperationAdd("a.txt", b"x" * 50_000)], commit_message="half")
    assert hub.api().list_repo_files("me/a") == [".gitattributes"]
