"""One repository: commits as lists of files, and the branches, tags and pull requests that name them."""

import hashlib
import json
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from demo.hub.refusal import Refusal, no_entry, no_revision

MAIN = "main"
PULL = "refs/pr/"


class Entry(NamedTuple):
    """A file in a commit."""

    size: int
    oid: str
    """Git's SHA-1 of the file, or of its LFS pointer."""
    sha256: str | None = None
    """Present when the content lies in the LFS store."""


class Commit(NamedTuple):
    """A state of the whole tree."""

    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, Entry]


class Repository:
    """A folder with `repo.json`, `commits/` and `blobs/`. Not locked: the store's lock covers every change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state: dict[str, Any] = {"pulls": {}} | json.loads((folder / "repo.json").read_text())

    @classmethod
    def create(cls, folder: Path, *, kind: str, id: str, owner: str, private: bool) -> "Repository":
        """An empty repository with the Hub's first commit on `main`."""
        for name in ("commits", "blobs"):
            (folder / name).mkdir(parents=True)
        state = {"kind": kind, "id": id, "owner": owner, "private": private, "gated": False, "granted": []}
        write_json(folder / "repo.json", {**state, "branches": {}, "tags": {}, "pulls": {}, "created": now()})
        repository = cls(folder)
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        first = repository.put_blob(attributes)
        repository.add_commit(MAIN, None, {".gitattributes": first}, title="initial commit", message="", author=owner)
        return repository

    @property
    def id(self) -> str:
        """`owner/name`, or a name alone."""
        return str(self.state["id"])

    @property
    def kind(self) -> str:
        """`models` or `datasets`."""
        return str(self.state["kind"])

    def change(self, **fields: Any) -> None:
        """Set fields of the state and keep them."""
        self.state.update(fields)
        write_json(self.folder / "repo.json", self.state)

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, tag, pull request (`refs/pr/1`) or commit id names."""
        pull = self.state["pulls"].get(revision.removeprefix(PULL)) if revision.startswith(PULL) else None
        named = self.state["branches"].get(revision) or self.state["tags"].get(revision)
        id = pull["head"] if pull else named or revision
        path = self.folder / "commits" / f"{id}.json"
        if not id.isalnum() or not path.is_file():
            raise no_revision(revision)
        document = json.loads(path.read_text())
        files = {name: Entry(*entry) for name, entry in document.pop("files").items()}
        return Commit(**document, files=files)

    def split(self, rest: str) -> tuple[Commit, str]:
        """Cut `revision/path`, where either part may contain slashes: the longest revision that exists wins."""
        parts = rest.split("/")
        for count in range(len(parts), 0, -1):
            try:
                return self.resolve("/".join(parts[:count])), "/".join(parts[count:])
            except Refusal:
                continue
        raise no_revision(parts[0])

    def entry(self, commit: Commit, path: str) -> Entry:
        """A file of a commit."""
        if path not in commit.files:
            raise no_entry(path, commit.id)
        return commit.files[path]

    def history(self, revision: str) -> Iterable[Commit]:
        """Commits, newest first."""
        id: str | None = self.resolve(revision).id
        while id is not None:
            commit = self.resolve(id)
            yield commit
            id = commit.parent

    def add_commit(
        self, ref: str, parent: str | None, files: dict[str, Entry], *, title: str, message: str, author: str
    ) -> Commit:
        """Write a commit, then let the branch or the pull request name it: nobody sees half of it."""
        document: dict[str, Any] = {
            "parent": parent,
            "title": title,
            "message": message,
            "author": author,
            "date": now(),
        }
        text = json.dumps([document, files, os.urandom(8).hex()], sort_keys=True)
        commit = Commit(id=hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), **document, files=files)
        write_json(self.folder / "commits" / f"{commit.id}.json", commit._asdict())
        if ref.startswith(PULL):
            number = ref.removeprefix(PULL)
            pull = {**self.state["pulls"][number], "head": commit.id}
            self.change(pulls={**self.state["pulls"], number: pull})
        else:
            self.change(branches={**self.state["branches"], ref: commit.id})
        return commit

    def put_blob(self, content: bytes) -> Entry:
        """Keep a small file."""
        oid = git_oid(content)
        (self.folder / "blobs" / oid).write_bytes(content)
        return Entry(len(content), oid)

    def blob(self, oid: str) -> Path:
        """Where a small file lies."""
        return self.folder / "blobs" / oid


def lfs_entry(sha256: str, size: int) -> Entry:
    """A file in the LFS store, as git sees it: by its pointer."""
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return Entry(size, git_oid(pointer.encode()), sha256)


def git_oid(content: bytes) -> str:
    """Git's name of a blob."""
    return hashlib.sha1(b"blob %d\x00" % len(content) + content, usedforsecurity=False).hexdigest()


def now() -> str:
    """Time in the Hub's form."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def write_json(path: Path, document: Any) -> None:
    """Replace a file as a whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(document))
    temporary.replace(path)
