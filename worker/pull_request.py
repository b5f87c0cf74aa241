"""Publishing through a pull request: filled and checked where nobody is misled by it, then merged, visible at once.

Its number is kept as soon as there is one, so a repeat goes on with it; one whose number was lost is found by its title
and its author. It is merged only while the branch is where it began, so what is merged is exactly what was checked.
"""

from collections.abc import Sequence

from huggingface_hub import CommitOperationAdd, DiscussionWithDetails, HfApi
from huggingface_hub.errors import HfHubHTTPError

from optcore.errors import HubUnavailable
from optcore.sources.client import status_of
from worker.hub_errors import PublishConflict, PullRequestClosed
from worker.hub_target import Memory, Pushed, Target
from worker.hub_tree import Operations, changes, head_of, verify


def push(api: HfApi, target: Target, memory: Memory) -> Pushed:
    """Have a target's files on the Hub, in a pull request if they are not on the branch. Nothing is visible yet."""
    number = memory.number(target) or _find(api, target)
    details = _details(api, target, number) if number else None
    if details is None:
        return _open(api, target, memory)
    if details.status == "closed":
        remedy = "publish again to open a new one"
        raise PullRequestClosed(f"somebody closed {details.url}", remedy=remedy, field="/publish")
    memory.note(target, details.num)
    if details.status == "merged":
        return Pushed(target, details.merge_commit_oid or target.head, details.num)
    return _fill(api, target, memory, details)


def merge(api: HfApi, pushed: Pushed, memory: Memory) -> str:
    """Make what was pushed the state of the branch; gives the branch's commit. Doing it again changes nothing."""
    target, number = pushed.target, pushed.number
    if number is None:
        return pushed.commit
    details = api.get_discussion_details(target.repo_id, number)
    if details.status != "merged":
        memory.still_ours()
        _require_head(api, target)
        ready(api, pushed)
        api.merge_pull_request(target.repo_id, number)
        details = api.get_discussion_details(target.repo_id, number)
    if details.status != "merged" or details.merge_commit_oid is None:
        raise HubUnavailable(f"{details.url} is not merged yet", remedy="try again later", field="/publish")
    verify(api, target.repo_id, details.merge_commit_oid, target.files)
    return details.merge_commit_oid


def ready(api: HfApi, pushed: Pushed) -> None:
    """End the draft, if it is one: a draft cannot be merged."""
    if pushed.number and api.get_discussion_details(pushed.target.repo_id, pushed.number).status == "draft":
        api.change_discussion_status(pushed.target.repo_id, pushed.number, "open")


def _open(api: HfApi, target: Target, memory: Memory) -> Pushed:
    operations = changes(api, target.repo_id, target.head, target.files)
    if not operations:
        return Pushed(target, target.head, None)
    _upload(api, target, operations, revision=target.place.branch, create_pr=True)
    memory.still_ours()
    _require_head(api, target)
    made = api.create_commit(
        target.repo_id,
        operations,
        commit_message=target.title,
        revision=target.place.branch,
        create_pr=True,
        parent_commit=target.head,
    )
    if made.pr_num is None:  # the branch got the same files a moment ago, so there was nothing to open one for
        raise _moved(target)
    memory.note(target, made.pr_num)
    verify(api, target.repo_id, made.oid, target.files)
    return Pushed(target, made.oid, made.pr_num)


def _fill(api: HfApi, target: Target, memory: Memory, pull: DiscussionWithDetails) -> Pushed:
    """Go on with a pull request that is there, unless the branch has moved away from it."""
    revision = f"refs/pr/{pull.num}"
    history = [commit.commit_id for commit in api.list_repo_commits(target.repo_id, revision=revision)]
    if target.head not in history:
        memory.note(target, None)
        said = f"`{target.place.branch}` has moved; the same files follow in another pull request."
        api.change_discussion_status(target.repo_id, pull.num, "closed", comment=said)
        return _open(api, target, memory)
    commit = history[0]
    if operations := changes(api, target.repo_id, commit, target.files):
        _upload(api, target, operations, revision=revision)
        memory.still_ours()
        made = api.create_commit(
            target.repo_id, operations, commit_message=target.title, revision=revision, parent_commit=commit
        )
        commit = made.oid
    verify(api, target.repo_id, commit, target.files)
    return Pushed(target, commit, pull.num)


def _upload(api: HfApi, target: Target, operations: Operations, *, revision: str, create_pr: bool = False) -> None:
    """The long part: large files by their hashes, where nobody sees them, and none that is there is sent again."""
    additions: Sequence[CommitOperationAdd] = [one for one in operations if isinstance(one, CommitOperationAdd)]
    api.preupload_lfs_files(target.repo_id, additions, revision=revision, create_pr=create_pr, free_memory=False)


def _require_head(api: HfApi, target: Target) -> None:
    if head_of(api, target.repo_id, target.place.branch) != target.head:
        raise _moved(target)


def _moved(target: Target) -> PublishConflict:
    message = f"{target.repo_id} changed while we were publishing to {target.place.branch}"
    return PublishConflict(message, remedy="publish again", field="/publish/revision")


def _find(api: HfApi, target: Target) -> int | None:
    """Our open pull request, if the number was lost between its making and our writing it down."""
    found = [
        one
        for one in api.get_repo_discussions(target.repo_id, discussion_type="pull_request")
        if one.title == target.title and one.status in ("open", "draft")
    ]
    if not found:
        return None
    me = api.whoami()["name"]
    return next((one.num for one in found if one.author == me), None)


def _details(api: HfApi, target: Target, number: int) -> DiscussionWithDetails | None:
    try:
        return api.get_discussion_details(target.repo_id, number)
    except HfHubHTTPError as error:
        if status_of(error) == 404:  # the repository was deleted and made anew
            return None
        raise
