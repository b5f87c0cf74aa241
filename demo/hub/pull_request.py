"""Pull requests of a repository: a commit of their own beside the branches, until they are merged or closed."""

import os
from typing import Any

from demo.hub.refusal import Refusal
from demo.hub.repository import Commit, Entry, Repository, now

Pull = dict[str, Any]
"""As kept in the repository's state."""


def open_pull(
    repository: Repository, *, base: str, title: str, description: str, author: str, start: Commit, status: str
) -> Pull:
    """Open one against a branch, that begins at a commit of it. `status`: draft, or open when it has content."""
    pulls = repository.state["pulls"]
    pull = {
        "num": len(pulls) + 1,
        "title": title,
        "description": description,
        "author": author,
        "status": status,
        "base": base,
        "fork": start.id,
        "head": start.id,
        "merged": None,
        "created": now(),
        "events": [],
    }
    repository.change(pulls={**pulls, str(pull["num"]): pull})
    return pull


def find_pull(repository: Repository, num: int) -> Pull:
    """One by its number."""
    pull: Pull | None = repository.state["pulls"].get(str(num))
    if pull is None:
        raise Refusal(404, f"No discussion {num}")
    return pull


def set_status(repository: Repository, pull: Pull, status: str, author: str, **more: Any) -> dict[str, Any]:
    """Change the status; gives the event of the change."""
    event = {
        "id": os.urandom(12).hex(),
        "type": "status-change",
        "createdAt": now(),
        "author": {"name": author},
        "data": {"status": status},
    }
    changed = {**pull, "status": status, "events": [*pull["events"], event], **more}
    repository.change(pulls={**repository.state["pulls"], str(pull["num"]): changed})
    return event


def conflicts(repository: Repository, pull: Pull) -> list[str]:
    """Paths that the branch and the pull request have changed to different contents since they parted."""
    ours, theirs = _changed(repository, pull, pull["head"]), _changed(repository, pull, pull["base"])
    return sorted(path for path in ours if path in theirs and ours[path] != theirs[path])


def merge(repository: Repository, pull: Pull, author: str) -> Commit:
    """Put the changes on the branch as one commit, as the Hub does."""
    if pull["status"] != "open":
        draft = "This branch is in draft mode, publish it to be able to merge."
        raise Refusal(400, draft if pull["status"] == "draft" else f"The pull request is {pull['status']}")
    if paths := conflicts(repository, pull):
        raise Refusal(409, f"Cannot merge: conflicts in {', '.join(paths)}")
    base = repository.resolve(pull["base"])
    merged = base.files | _changed(repository, pull, pull["head"])
    files = {path: entry for path, entry in merged.items() if entry is not None}
    title, message = f"{pull['title']} (#{pull['num']})", f"- {pull['title']} ({pull['head']})"
    made = repository.add_commit(pull["base"], base.id, files, title=title, message=message, author=author)
    set_status(repository, pull, "merged", author, merged=made.id)
    return made


def _changed(repository: Repository, pull: Pull, revision: str) -> dict[str, Entry | None]:
    old, new = repository.resolve(pull["fork"]).files, repository.resolve(revision).files
    return {path: new.get(path) for path in {*old, *new} if old.get(path) != new.get(path)}
