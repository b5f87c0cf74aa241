"""Publishing: a finished checkpoint becomes visible on the Hub, whole or not at all.

Large files are uploaded first, where nobody sees them; then all files are pushed to a pull request and compared, and
merging it is the last step, so a crash leaves the branch as it was. Running it again finds what is there by its hashes,
and makes nothing twice.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi

from optcore.errors import OptError
from optcore.references import Place, Publish
from optcore.sources.client import ClientError, hub_api
from worker import pull_request
from worker.hub_client import PATIENCE_seconds, bound_waits
from worker.hub_errors import HubBusy, PublishConflict, PublishRefused, explain
from worker.hub_files import Files, Sign, by_place, local_files
from worker.hub_target import Memory, Pushed, Target
from worker.hub_tree import changes, head_of, verify

WAITS_seconds = (2.0, 10.0)
"""Between tries of one push, on top of what the client does by itself."""


class Published(NamedTuple):
    """Where the main result can be seen."""

    url: str
    commit: str


def publish_folder(
    folder: Path,
    publish: Publish,
    token: str,
    *,
    message: str = "Publish an optimized checkpoint",
    memory: Memory,
    sign: Sign | None = None,
) -> Published:
    """Have the Hub hold the files of a folder where `publish` says; safe to repeat after any failure.

    Other files there stay, except weights and further results of an earlier model. `message` names the pull requests,
    and must be of this push alone; `sign` signs results that part from each other. Raises `PublishRefused`,
    `PublishConflict`, `PublishMismatch`, `HubUnavailable`, and what `memory` and `sign` raise; the token is in none of
    them.
    """
    api, wanted = hub_api(token), by_place(local_files(folder), publish, sign)
    for wait in (*WAITS_seconds, None):
        try:
            bound_waits()
            return _publish(api, wanted, publish, message, memory)
        except (*ClientError, ValueError, OptError) as error:
            problem = error if isinstance(error, OptError) else explain(error, publish, token)
            asked = problem.retry_after_seconds if isinstance(problem, HubBusy) else 0.0
            if wait is None or not problem.retryable or asked > PATIENCE_seconds:
                raise problem from None  # the cause holds the request, with the token in its headers
            time.sleep(max(wait, asked))
    raise AssertionError("the last try returns or raises")


def _publish(
    api: HfApi, wanted: Sequence[tuple[Place, Files]], publish: Publish, message: str, memory: Memory
) -> Published:
    targets = [_prepare(api, place, files, publish, message) for place, files in wanted]
    if publish.via == "branch":
        commits = [_commit(api, target) for target in targets]
    else:
        pushed = [pull_request.push(api, target, memory) for target in targets]
        if not publish.merge:
            return _left_open(api, pushed)
        commits = [pull_request.merge(api, one, memory) for one in pushed]
    return Published(f"{api.endpoint}/{targets[-1].repo_id}/tree/{commits[-1]}", commits[-1])


def _left_open(api: HfApi, pushed: Sequence[Pushed]) -> Published:
    for one in pushed:
        pull_request.ready(api, one)
    main = pushed[-1]
    below = f"discussions/{main.number}" if main.number else f"tree/{main.commit}"
    return Published(f"{api.endpoint}/{main.target.repo_id}/{below}", main.commit)


def _prepare(api: HfApi, place: Place, files: Files, publish: Publish, message: str) -> Target:
    """Make the repository and the branch when they are absent."""
    repo_id = api.create_repo(place.repo_id, private=publish.private, exist_ok=True).repo_id
    if publish.private and not api.model_info(repo_id).private:
        remedy = "make the repository private on the Hub, name another one, or set `private: false`"
        said = f"{repo_id} exists and is public, and the recipe says private"
        raise PublishRefused(said, remedy=remedy, field="/publish/private")
    head = head_of(api, repo_id, place.branch) or _new_branch(api, repo_id, place.branch)
    title = message if place.branch == publish.revision else f"{message}, {place.branch}"
    return Target(place._replace(repo_id=repo_id), head, files, title)


def _new_branch(api: HfApi, repo_id: str, branch: str) -> str:
    """From the repository's first commit: from `main` it would show another model under the new name."""
    first = api.list_repo_commits(repo_id)[-1].commit_id
    api.create_branch(repo_id, branch=branch, revision=first, exist_ok=True)
    head = head_of(api, repo_id, branch)
    if head is None:
        raise PublishConflict(f"branch {branch} of {repo_id} vanished", remedy="publish again")
    return head


def _commit(api: HfApi, target: Target) -> str:
    """All changes in one commit on the branch, which is refused when the branch has moved."""
    operations = changes(api, target.repo_id, target.head, target.files)
    if not operations:
        return target.head
    made = api.create_commit(
        target.repo_id,
        operations,
        commit_message=target.title,
        revision=target.place.branch,
        parent_commit=target.head,
    )
    verify(api, target.repo_id, made.oid, target.files)
    return made.oid
