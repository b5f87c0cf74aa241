"""Publishing through a pull request: one of them, merged once, whatever breaks on the way."""

import time
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.utils._http
import pytest
from fixtures.hub import OTHER_TOKEN, OWNER_TOKEN, HubPeer

import worker.hub
from api.errors import Fenced
from optcore.errors import HubUnavailable
from optcore.references import Publish
from worker.hub import Published, publish_folder
from worker.hub_errors import HubBusy, PublishMismatch, PublishRefused, PullRequestClosed
from worker.hub_target import Memory, Numbers

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own uploads
PLACE = Publish(repo_id="me/small", private=False)
TITLE = "Add the result of job_1"
AWAY = {"status": 503, "times": 100}


@pytest.fixture(autouse=True)
def _this_hub(hub: HubPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(worker.hub, "WAITS_seconds", (0.01, 0.01))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # so that uploads are requests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "artifact"
    made.mkdir()
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    (made / "config.json").write_text("{}")
    (made / "README.md").write_text("---\nbase_model: a/b\n---\n# A model\n")
    return made


@pytest.fixture
def publish(folder: Path) -> Callable[..., Published]:
    """A push with a database behind it: what it keeps is known to the next one."""
    kept: Numbers = {}

    def keep(numbers: Numbers) -> None:
        kept.clear()
        kept.update(numbers)

    def call(place: Publish = PLACE, keep: Callable[[Numbers], None] = keep, known: bool = True) -> Published:
        memory = Memory(dict(kept) if known else {}, keep)
        return publish_folder(folder, place, OWNER_TOKEN, message=TITLE, memory=memory)

    return call


def pulls(hub: HubPeer) -> list[str]:
    """The status of each, oldest first."""
    return [one.status for one in hub.api().get_repo_discussions("me/small")][::-1]


def visible(hub: HubPeer) -> list[str]:
    return hub.api().list_repo_files("me/small")


def assert_published_once(hub: HubPeer, published: Published) -> None:
    assert pulls(hub).count("merged") == 1
    assert "open" not in pulls(hub)
    assert hub.api().model_info("me/small").sha == published.commit
    titles = [commit.title for commit in hub.api().list_repo_commits("me/small")]
    assert [TITLE in title for title in titles].count(True) == 1
    assert {"model.safetensors", "config.json", "README.md"} <= set(visible(hub))


def test_nothing_is_visible_before_the_merge_and_a_repeat_goes_on_with_the_same_one(
    hub: HubPeer, publish: Callable[..., Published]
) -> None:
    hub.fail("POST .*/discussions/1/merge", **AWAY)
    with pytest.raises(HubUnavailable):
        publish()
    assert visible(hub) == [".gitattributes"]
    assert set(hub.api().list_repo_files("me/small", revision="refs/pr/1")) > {"model.safetensors"}
    hub.app.state.faults.waiting.clear()
    hub.requests.clear()
    assert_published_once(hub, publish())
    assert pulls(hub) == ["merged"]
    assert not [line for line in hub.requests if "/commit/" in line or "_lfs" in line], "all was there"


def test_one_whose_number_was_lost_is_found_and_anothers_is_not(
    hub: HubPeer, publish: Callable[..., Published]
) -> None:
    hub.put("me/small", {"a.txt": "x"})
    hub.api(OTHER_TOKEN).create_pull_request("me/small", title=TITLE)
    hub.fail("POST .*/discussions/2/merge", **AWAY)
    with pytest.raises(HubUnavailable):
        publish()
    hub.app.state.faults.waiting.clear()
    published = publish(known=False)
    assert pulls(hub) == ["draft", "merged"]
    assert hub.api().get_discussion_details("me/small", 2).merge_commit_oid == published.commit


@pytest.mark.parametrize("line", ["POST .*/commit/main", "POST .*/merge", "POST .*/preupload", "PUT /_lfs"])
def test_a_lost_answer_makes_nothing_twice(hub: HubPeer, publish: Callable[..., Published], line: str) -> None:
    hub.fail(line, 504, after=True)
    published = publish()
    assert_published_once(hub, published)
    assert pulls(hub) == ["merged"]
    assert publish() == published


def test_half_an_upload_shows_nothing_and_is_not_sent_twice_once_whole(
    hub: HubPeer, publish: Callable[..., Published], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda _: None)
    hub.fail("PUT /_lfs", 500, times=100, cut_after_bytes=1000)
    with pytest.raises(HubUnavailable):
        publish()
    assert (visible(hub), pulls(hub)) == ([".gitattributes"], [])
    hub.app.state.faults.waiting.clear()
    hub.fail("POST .*/commit/main", **AWAY)
    with pytest.raises(HubUnavailable):
        publish()
    assert (visible(hub), pulls(hub)) == ([".gitattributes"], [])
    hub.app.state.faults.waiting.clear()
    hub.requests.clear()
    assert_published_once(hub, publish())
    assert not [line for line in hub.requests if line.startswith("PUT /_lfs")]


def test_a_branch_that_moved_is_never_merged_into_blindly(hub: HubPeer, publish: Callable[..., Published]) -> None:
    hub.fail("POST .*/discussions/1/merge", **AWAY)
    with pytest.raises(HubUnavailable):
        publish()
    hub.app.state.faults.waiting.clear()
    hub.put("me/small", {"model-00001-of-00002.safetensors": b"an earlier half", "NOTES.md": "by hand"})
    assert_published_once(hub, publish())
    assert pulls(hub) == ["closed", "merged"]
    assert "NOTES.md" in visible(hub)
    assert "model-00001-of-00002.safetensors" not in visible(hub)


def test_one_that_somebody_closed_stays_closed(hub: HubPeer, publish: Callable[..., Published]) -> None:
    hub.fail("POST .*/discussions/1/merge", **AWAY)
    with pytest.raises(HubUnavailable):
        publish()
    hub.app.state.faults.waiting.clear()
    hub.api().change_discussion_status("me/small", 1, "closed")
    with pytest.raises(PullRequestClosed) as caught:
        publish()
    failure = caught.value.failure()
    assert (failure.kind, failure.code, failure.retryable) == ("user_error", "pull_request_closed", False)
    assert (visible(hub), pulls(hub)) == ([".gitattributes"], ["closed"])
    assert publish(known=False).commit == hub.api().model_info("me/small").sha, "asked for again, with a new one"


def test_one_that_a_person_merges_is_done(hub: HubPeer, publish: Callable[..., Published]) -> None:
    open_ = publish(PLACE.model_copy(update={"merge": False}))
    assert open_.url == f"{hub.url}/me/small/discussions/1"
    assert (visible(hub), pulls(hub)) == ([".gitattributes"], ["open"])
    hub.api().merge_pull_request("me/small", 1)
    assert_published_once(hub, publish())


def test_one_that_was_opened_as_a_draft_is_merged_too(hub: HubPeer, publish: Callable[..., Published]) -> None:
    hub.put("me/small", {})
    hub.api().create_pull_request("me/small", title=TITLE)
    assert_published_once(hub, publish())
    assert pulls(hub) == ["merged"]


def test_a_right_that_is_lost_on_the_way_is_named(hub: HubPeer, publish: Callable[..., Published]) -> None:
    hub.fail("POST .*/merge", 403)
    with pytest.raises(PublishRefused, match="does not let us write") as caught:
        publish()
    assert caught.value.field == "/publish/credential"
    assert (visible(hub), pulls(hub)) == ([".gitattributes"], ["open"])


def test_what_differs_on_the_hub_is_not_merged(
    hub: HubPeer, publish: Callable[..., Published], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.hub.HfApi, "get_paths_info", lambda *_, **__: [])
    with pytest.raises(PublishMismatch):
        publish()
    assert (visible(hub), pulls(hub)) == ([".gitattributes"], ["open"])
    monkeypatch.undo()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    (folder / "config.json").write_text('{"changed": true}')
    published = publish()
    assert_published_once(hub, published)
    assert Path(hub.api().hf_hub_download("me/small", "config.json")).read_text() == '{"changed": true}'


def test_a_branch_that_moves_before_the_merge_is_looked_at_again(
    hub: HubPeer, publish: Callable[..., Published]
) -> None:
    kept: list[Numbers] = []

    def somebody_commits(numbers: Numbers) -> None:
        if numbers and not any(kept):
            hub.put("me/small", {"model-00001.safetensors": b"half of another"})
        kept.append(numbers)

    assert_published_once(hub, publish(keep=somebody_commits))
    assert pulls(hub) == ["closed", "merged"]
    assert kept[-1] == {"me/small@main": 2}
    assert "model-00001.safetensors" not in visible(hub)


@pytest.mark.parametrize(("writes", "left"), [(0, []), (1, ["open"]), (2, ["open"])])
def test_a_worker_that_loses_the_push_on_the_way_merges_nothing(
    hub: HubPeer, publish: Callable[..., Published], writes: int, left: list[str]
) -> None:
    allowed = iter(range(writes))

    def keep(numbers: Numbers) -> None:
        if next(allowed, None) is None:
            raise Fenced("taken over", remedy="stop")

    with pytest.raises(Fenced):
        publish(keep=keep)
    assert (visible(hub), pulls(hub)) == ([".gitattributes"], left)


def test_a_worker_that_lost_the_push_opens_and_merges_nothing(hub: HubPeer, publish: Callable[..., Published]) -> None:
    def taken_over(numbers: Numbers) -> None:
        raise Fenced("taken over", remedy="stop")

    for _ in range(2):
        with pytest.raises(Fenced):
            publish(keep=taken_over)
        assert (visible(hub), pulls(hub)) == ([".gitattributes"], [])
    hub.fail("POST .*/merge", **AWAY)
    with pytest.raises(HubUnavailable):
        publish()
    hub.app.state.faults.waiting.clear()
    with pytest.raises(Fenced):
        publish(keep=taken_over)
    assert (visible(hub), pulls(hub)) == ([".gitattributes"], ["open"])


def test_without_pull_requests_it_is_one_commit_on_the_branch(hub: HubPeer, publish: Callable[..., Published]) -> None:
    hub.fail("discussions|create_pr", 404, times=100)
    published = publish(PLACE.model_copy(update={"via": "branch"}))
    assert [commit.title for commit in hub.api().list_repo_commits("me/small")] == [TITLE, "initial commit"]
    assert hub.api().model_info("me/small").sha == published.commit
    with pytest.raises(PublishRefused, match="HTTP 404") as caught:
        publish()
    assert "via: branch" in caught.value.remedy


@pytest.mark.parametrize("line", ["POST .*/commit/main", "POST .*/preupload", "GET .*/refs", "POST .*/merge"])
def test_a_wait_that_the_hub_asks_for_is_kept_when_short_and_handed_back_when_long(
    hub: HubPeer, publish: Callable[..., Published], line: str
) -> None:
    hub.fail(line, 503, headers={"Retry-After": "7200"})
    before = time.monotonic()
    with pytest.raises(HubBusy) as caught:
        publish()
    assert time.monotonic() - before < 30
    assert caught.value.retry_after_seconds == 7200
    hub.fail(line, 429, headers={"RateLimit": '"api";r=0;t=1'})
    before = time.monotonic()
    assert_published_once(hub, publish())
    assert time.monotonic() - before > 1
