"""Publishing through the real client to a local peer of the Hub: one pull request, visible whole or not at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.hub import OTHER_TOKEN, OWNER_TOKEN, READER_TOKEN, HubPeer

import worker.hub
from optcore.errors import HubUnavailable
from optcore.references import Publish
from worker.hub import Published, publish_folder
from worker.hub_errors import PublishConflict, PublishMismatch, PublishRefused
from worker.hub_target import Memory

PLACE = Publish(repo_id="me/small", private=True)


@pytest.fixture(autouse=True)
def _this_hub(hub: HubPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(worker.hub, "WAITS_seconds", (0.01, 0.01))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the engine leaves: a large file, small ones, one in a folder, and one that is hidden."""
    made = tmp_path / "artifact"
    (made / "plots").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(os.urandom(10_500_000))
    (made / "config.json").write_text('{"model_type": "llama"}')
    (made / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (made / "plots" / "error.svg").write_text("<svg/>")
    (made / ".cache").write_text("not ours")
    return made


def publish(folder: Path, place: Publish, token: str, memory: Memory | None = None, **more: str) -> Published:
    return publish_folder(folder, place, token, memory=memory or Memory({}, lambda _: None), **more)


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_new_private_repository_holds_the_folder_in_one_commit(hub: HubPeer, folder: Path, tmp_path: Path) -> None:
    published = publish(folder, PLACE, OWNER_TOKEN, message="Publish")
    api = hub.api()
    assert published.url == f"{hub.url}/me/small/tree/{published.commit}"
    assert api.model_info("me/small").private
    assert [commit.title for commit in api.list_repo_commits("me/small")] == ["Publish (#1)", "initial commit"]
    got = Path(api.snapshot_download("me/small", revision=published.commit, local_dir=tmp_path / "got"))
    published_names = names(folder) - {".cache"}
    assert published_names == {name for name in names(got) if not name.startswith((".cache", ".git"))}
    assert all((got / name).read_bytes() == (folder / name).read_bytes() for name in published_names)
    weights = api.get_paths_info("me/small", ["model.safetensors"])[0]
    assert weights.lfs is not None
    assert weights.lfs.size == 10_500_000


def test_publishing_again_unchanged_makes_no_commit_and_uploads_nothing(hub: HubPeer, folder: Path) -> None:
    first = publish(folder, PLACE, OWNER_TOKEN)
    hub.requests.clear()
    assert publish(folder, PLACE, OWNER_TOKEN) == first
    assert not [line for line in hub.requests if "commit" in line or "preupload" in line or "xet" in line]


def test_a_change_is_one_more_commit_without_the_weights_of_the_earlier_model(hub: HubPeer, folder: Path) -> None:
    publish(folder, PLACE, OWNER_TOKEN)
    hub.put("me/small", {"NOTES.txt": "somebody's own"})
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    publish(folder, PLACE, OWNER_TOKEN)
    on_hub = hub.api().list_repo_files("me/small")
    assert "model-00001-of-00001.safetensors" in on_hub
    assert "model.safetensors" not in on_hub
    assert {"NOTES.txt", ".gitattributes"} <= set(on_hub)


def test_another_branch_is_made_and_main_stays(hub: HubPeer, folder: Path) -> None:
    published = publish(folder, PLACE.model_copy(update={"revision": "nvfp4/v1"}), OWNER_TOKEN)
    api = hub.api()
    assert {ref.name: ref.target_commit for ref in api.list_repo_refs("me/small").branches}[
        "nvfp4/v1"
    ] == published.commit
    assert api.list_repo_files("me/small") == [".gitattributes"]


def test_a_name_without_owner_goes_to_the_tokens_owner(hub: HubPeer, folder: Path) -> None:
    published = publish(folder, Publish(repo_id="small", private=False), OWNER_TOKEN)
    assert published.url.startswith(f"{hub.url}/me/small/")
    assert hub.api(None).model_info("me/small").sha == published.commit


@pytest.mark.parametrize("token", [OTHER_TOKEN, READER_TOKEN, "hf_nobody"])
def test_a_token_that_may_not_write_is_refused_by_name_of_the_field(hub: HubPeer, folder: Path, token: str) -> None:
    hub.put("me/small", {"config.json": "{}"}, private=True)
    with pytest.raises(PublishRefused, match="does not let us write") as caught:
        publish(folder, PLACE, token)
    failure = caught.value.failure()
    assert (failure.field, failure.kind, failure.retryable) == ("/publish/credential", "user_error", False)
    assert token not in failure.model_dump_json()
    assert hub.api().list_repo_files("me/small") == [".gitattributes", "config.json"]


def test_a_public_repository_never_gets_what_should_be_private(hub: HubPeer, folder: Path) -> None:
    hub.put("me/small", {"config.json": "{}"})
    with pytest.raises(PublishRefused, match="public") as caught:
        publish(folder, PLACE, OWNER_TOKEN)
    assert caught.value.field == "/publish/private"


def test_a_bad_card_is_refused_before_anything_is_visible(hub: HubPeer, folder: Path) -> None:
    (folder / "README.md").write_text("---\n[unclosed\n---\n")
    with pytest.raises(PublishRefused, match=r"README\.md"):
        publish(folder, PLACE, OWNER_TOKEN)
    assert hub.api().list_repo_files("me/small") == [".gitattributes"]


def test_a_race_is_a_conflict_and_the_next_try_wins(
    hub: HubPeer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = worker.hub.HfApi.list_repo_tree

    def somebody_commits(self: object, *arguments: object, **options: object) -> object:
        listed = list(tree(self, *arguments, **options))
        hub.put("me/small", {"other.txt": "first"})
        return listed

    with monkeypatch.context() as patch:
        patch.setattr(worker.hub.HfApi, "list_repo_tree", somebody_commits)
        with pytest.raises(PublishConflict) as caught:
            publish(folder, PLACE, OWNER_TOKEN)
    assert caught.value.retryable
    assert "model.safetensors" not in hub.api().list_repo_files("me/small")
    publish(folder, PLACE, OWNER_TOKEN)
    assert {"model.safetensors", "other.txt"} <= set(hub.api().list_repo_files("me/small"))


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("line", ["POST /api/repos/create", "GET .*/refs", "POST .*/commit/", "POST .*/paths-info"])
def test_one_unavailable_answer_is_survived(hub: HubPeer, folder: Path, status: int, line: str) -> None:
    hub.fail(line, status)
    published = publish(folder, PLACE, OWNER_TOKEN)
    assert hub.api().model_info("me/small").sha == published.commit


def test_a_lost_answer_to_the_commit_makes_no_second_one(hub: HubPeer, folder: Path) -> None:
    hub.fail("POST .*/commit/main", 504, after=True)
    publish(folder, PLACE, OWNER_TOKEN)
    assert len(hub.api().list_repo_commits("me/small")) == 2


def test_a_hub_that_stays_away_is_typed_and_retryable(hub: HubPeer, folder: Path) -> None:
    hub.fail("POST /api/repos/create", 503, times=100)
    with pytest.raises(HubUnavailable, match="HTTP 503") as caught:
        publish(folder, PLACE, OWNER_TOKEN)
    assert caught.value.retryable


def test_no_server_is_typed_and_retryable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnavailable, match="did not answer") as caught:
        publish(folder, PLACE, OWNER_TOKEN)
    assert OWNER_TOKEN not in str(caught.value.failure())


def test_a_hash_that_differs_on_the_hub_is_noticed(hub: HubPeer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = worker.hub.HfApi.get_paths_info

    def damaged(self: object, *arguments: object, **options: object) -> object:
        entries = info(self, *arguments, **options)
        for entry in entries:
            entry.blob_id = "0" * 40
        return entries

    monkeypatch.setattr(worker.hub.HfApi, "get_paths_info", damaged)
    with pytest.raises(PublishMismatch, match="is not the file that was sent"):
        publish(folder, PLACE, OWNER_TOKEN)


PROGRAM = """
import os, sys
from pathlib import Path
from optcore.references import Publish
from worker.hub import Published, publish_folder
from worker.hub_target import Memory
where = Publish(repo_id="me/small")
print(publish_folder(Path(sys.argv[1]), where, os.environ["HF_TOKEN"], memory=Memory({}, lambda _: None)).commit)
"""


@pytest.mark.parametrize("xet", ["0", "1"])
def test_it_works_with_and_without_xet(hub: HubPeer, folder: Path, xet: str) -> None:
    environment = {**os.environ, **hub.environment, "HF_HUB_DISABLE_XET": xet}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert hub.api().model_info("me/small").sha == done.stdout.strip()
    used = json.dumps(hub.requests)
    assert ("xet-write-token" in used) == (xet == "0")
    assert ("/_lfs/" in used) == (xet == "1")
    assert OWNER_TOKEN not in done.stderr
