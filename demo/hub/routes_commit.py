"""Commits: what goes how, and the one request that makes it visible."""

import base64
import json
from typing import Any
from urllib.parse import quote

import yaml
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from demo.hub.access import Door
from demo.hub.deps import TheDoor
from demo.hub.pull_request import open_pull
from demo.hub.refusal import Refusal, no_revision
from demo.hub.repository import PULL, Commit, Entry, Repository, lfs_entry
from demo.hub.routes_repos import API

LARGE_bytes = 10_000_000
_LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".onnx", ".parquet", ".gz", ".zip", ".png", ".model")

router = APIRouter()


@router.post("/api/validate-yaml")
async def validate_yaml(request: Request) -> Response:
    head = str((await request.json())["content"]).split("---\n", 2)
    problems = _yaml_problems(head[1]) if len(head) == 3 else []
    return JSONResponse({"errors": problems, "warnings": []}, 400 if problems else 200)


@router.post(API + "/preupload/{revision:path}")
async def preupload(
    request: Request, door: TheDoor, kind: str, id: str, revision: str, create_pr: bool = False
) -> dict[str, Any]:
    repository = door.to_propose(request, kind, id) if create_pr else door.to_push(request, kind, id, revision)
    commit = repository.resolve(revision)
    return {"files": [_mode(file, commit) for file in (await request.json())["files"]]}


@router.post(API + "/commit/{revision:path}")
async def commit(
    request: Request, door: TheDoor, kind: str, id: str, revision: str, create_pr: bool = False
) -> dict[str, Any]:
    found = door.to_propose(request, kind, id) if create_pr else door.to_push(request, kind, id, revision)
    author = door.signed_in(request).name
    lines = [json.loads(line) for line in (await request.body()).splitlines() if line]
    with door.store.lock:
        repository = Repository(found.folder)
        make = _propose if create_pr else _commit
        made = make(door, repository, revision, lines, author)
    address = f"{request.base_url}{'' if kind == 'models' else f'{kind}/'}{id}"
    answer = {"success": True, "commitOid": made.id, "commitUrl": f"{address}/commit/{made.id}", "hookOutput": ""}
    number = len(repository.state["pulls"])
    return answer | ({"pullRequestUrl": f"{address}/discussions/{number}"} if create_pr else {})


def _yaml_problems(text: str) -> list[dict[str, str]]:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [{"message": f"not valid YAML: {error}"}]
    return [] if isinstance(document, dict | None) else [{"message": "metadata must be a mapping"}]


def _mode(file: dict[str, Any], commit: Commit) -> dict[str, Any]:
    path, size, sample = str(file["path"]), int(file["size"]), base64.b64decode(file.get("sample", ""))
    large = size >= LARGE_bytes or path.endswith(_LFS_SUFFIXES) or b"\x00" in sample
    there = commit.files.get(path)
    oid = (there.sha256 or there.oid) if there else None
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}


def _header(lines: list[dict[str, Any]]) -> dict[str, Any]:
    header: dict[str, Any] = next(line["value"] for line in lines if line["key"] == "header")
    return header


def _propose(door: Door, repository: Repository, base: str, lines: list[dict[str, Any]], author: str) -> Commit:
    """A commit in a new pull request against a branch. One that is refused opens none."""
    header = _header(lines)
    if base not in repository.state["branches"]:
        raise no_revision(quote(base))
    start = repository.resolve(header.get("parentCommit") or base)
    files, title, message = _tree(door, repository, start, lines), str(header["summary"]), str(header["description"])
    words = {"title": title, "description": message, "author": author}
    pull = open_pull(repository, base=base, start=start, status="open", **words)
    return repository.add_commit(f"{PULL}{pull['num']}", start.id, files, title=title, message=message, author=author)


def _commit(door: Door, repository: Repository, ref: str, lines: list[dict[str, Any]], author: str) -> Commit:
    header = _header(lines)
    if ref not in repository.state["branches"] and not ref.startswith(PULL):
        raise no_revision(quote(ref))
    head = repository.resolve(ref)
    if header.get("parentCommit") not in (None, head.id):
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    files = _tree(door, repository, head, lines)
    title, message = str(header["summary"]), str(header.get("description", ""))
    return repository.add_commit(ref, head.id, files, title=title, message=message, author=author)


def _tree(door: Door, repository: Repository, start: Commit, lines: list[dict[str, Any]]) -> dict[str, Entry]:
    files = dict(start.files)
    for line in lines:
        _apply(door, repository, files, line["key"], line["value"])
    return files


def _apply(door: Door, repository: Repository, files: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
    if key == "header":
        return
    path = _checked(str(value["path"]))
    if key == "file":
        files[path] = repository.put_blob(base64.b64decode(value["content"]))
    elif key == "lfsFile":
        files[path] = _lfs_file(door, str(value["oid"]), value.get("size"))
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise Refusal(404, f"A file with this name doesn't exist: {path}", code="EntryNotFound")
    elif key == "deletedFolder":
        for name in [name for name in files if name.startswith(f"{path.rstrip('/')}/")]:
            del files[name]
    else:
        raise Refusal(400, f"unknown operation {key!r}")


def _lfs_file(door: Door, oid: str, size: int | None) -> Entry:
    if size is None:
        size = door.store.lfs(oid).stat().st_size if door.store.lfs(oid).is_file() else 0
    if not door.store.ensure(oid, size):
        raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {oid}")
    return lfs_entry(oid, size)


def _checked(path: str) -> str:
    parts = path.rstrip("/").split("/")
    if any(part in ("", ".", "..", ".git") for part in parts) or "\x00" in path or "\\" in path:
        raise Refusal(400, f"not a path in a repository: {path!r}")
    return path
