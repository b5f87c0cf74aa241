"""Publishing: a finished checkpoint becomes one commit on the Hub, whole or not at all.

Large files are uploaded first, where nobody sees them; the commit that names all files is the last step, so a crash
leaves the branch as it was. Running it again finds what is there by its hashes, and makes no second commit.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import RepoFile

from optcore.errors import HubUnavailable
from optcore.references import Publish
from optcore.sources.client import ClientError, hub_api
from worker.hub_errors import PublishConflict, PublishMismatch, PublishRefused, explain
from worker.hub_files import LocalFile, local_files

WAITS_seconds = (2.0, 10.0)
"""Between tries while the Hub does not answer, on top of what the client does by itself."""
_PATHS_A_CALL = 500
_WEIGHTS = (".safetensors", ".safetensors.index.json")


class PublishedCommit(NamedTuple):
    """Where the checkpoint can be seen."""

    url: str
    commit: str


class _Target(NamedTuple):
    repo_id: str
    branch: str
    head: str


def publish_folder(
    folder: Path, publish: Publish, token: str, *, message: str = "Publish an optimized checkpoint"
) -> PublishedCommit:
    """Make a branch of a repository hold the files of a folder; safe to repeat after any failure.

    Other files on the branch stay, except weights of an earlier model. Raises `PublishRefused`, `PublishConflict`,
    `PublishMismatch` and `HubUnavailable`; the token is in none of them.
    """
    api, files = hub_api(token), local_files(folder)
    for wait in (*WAITS_seconds, None):
        try:
            return _publish(api, files, publish, message)
        except (*ClientError, ValueError) as error:
            problem = explain(error, publish, token)
            if wait is None or not isinstance(problem, HubUnavailable):
                raise problem from None  # the cause holds the request, with the token in its headers
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _publish(api: HfApi, files: dict[str, LocalFile], publish: Publish, message: str) -> PublishedCommit:
    target = _prepare(api, publish)
    there = _hashes(api.list_repo_tree(target.repo_id, recursive=True, revision=target.head))
    changes = _changes(files, there)
    commit = target.head
    if changes:
        made = api.create_commit(
            target.repo_id,
            changes,
            commit_message=message,
            revision=target.branch,
            parent_commit=target.head,
        )
        commit = made.oid
        _verify(api, target.repo_id, commit, files)
    return PublishedCommit(f"{api.endpoint}/{target.repo_id}/tree/{commit}", commit)


def _prepare(api: HfApi, publish: Publish) -> _Target:
    """Make the repository and the branch when they are absent; gives the branch's commit."""
    repo_id = api.create_repo(publish.repo_id, private=publish.private, exist_ok=True).repo_id
    if publish.private and not api.model_info(repo_id).private:
        remedy = "make the repository private on the Hub, name another one, or set `private: false`"
        message = f"{repo_id} exists and is public, and the recipe says private"
        raise PublishRefused(message, remedy=remedy, field="/publish/private")
    head = _head(api, repo_id, publish.revision)
    if head is None:
        api.create_branch(repo_id, branch=publish.revision, exist_ok=True)
        head = _head(api, repo_id, publish.revision)
    if head is None:
        raise PublishConflict(f"branch {publish.revision} of {repo_id} vanished", remedy="publish again")
    return _Target(repo_id, publish.revision, head)


def _head(api: HfApi, repo_id: str, branch: str) -> str | None:
    branches = api.list_repo_refs(repo_id).branches
    return next((ref.target_commit for ref in branches if ref.name == branch), None)


def _changes(files: dict[str, LocalFile], there: dict[str, str]) -> list[CommitOperationAdd | CommitOperationDelete]:
    """What turns the tree into ours. A weight file of an earlier model would be half of a wrong one: it goes."""
    stale = [path for path in there if path not in files and "/" not in path and path.endswith(_WEIGHTS)]
    added = [CommitOperationAdd(path, file.path) for path, file in files.items() if there.get(path) not in file.hashes]
    return [*added, *(CommitOperationDelete(path) for path in stale)]


def _verify(api: HfApi, repo_id: str, commit: str, files: dict[str, LocalFile]) -> None:
    paths = list(files)
    there: dict[str, str] = {}
    for start in range(0, len(paths), _PATHS_A_CALL):
        there |= _hashes(api.get_paths_info(repo_id, paths[start : start + _PATHS_A_CALL], revision=commit))
    for path, file in files.items():
        if there.get(path) not in file.hashes:
            raise PublishMismatch(f"{path} on the Hub is not the file that was sent", remedy="publish again")


def _hashes(entries: Iterable[object]) -> dict[str, str]:
    """What names each file's content: SHA-256 of a large one, git's SHA-1 of a small one."""
    return {
        entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in entries if isinstance(entry, RepoFile)
    }
