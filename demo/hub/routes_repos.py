"""Repositories: who am I, create, settings, delete; branches, tags, commits, trees."""

import json
from typing import Any
from urllib.parse import parse_qs

import yaml
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from demo.hub.access import Door
from demo.hub.deps import TheDoor
from demo.hub.refusal import Refusal
from demo.hub.repository import MAIN, PULL, Commit, Entry, Repository

API = "/api/{kind:kind}/{id:repo}"


router = APIRouter()


@router.get("/api/whoami-v2")
def whoami(request: Request, door: TheDoor) -> dict[str, Any]:
    user = door.signed_in(request)
    token = {"displayName": "peer", "role": user.role}
    return {"type": "user", "id": user.name, "name": user.name, "orgs": [], "auth": {"accessToken": token}}


@router.post("/api/repos/create")
async def create(request: Request, door: TheDoor) -> Any:
    user, body = door.signed_in(request), await request.json()
    kind, owner = f"{body.get('type', 'model')}s", body.get("organization") or user.name
    id = f"{owner}/{body['name']}"
    if user.role != "write" or owner != user.name:
        raise Refusal(403, f"You don't have the rights to create a {kind[:-1]} under the namespace {owner}")
    url = str(request.base_url) + ("" if kind == "models" else f"{kind}/") + id
    if door.store.find(kind, id):
        return JSONResponse({"error": f"You already created this {kind[:-1]} repo", "url": url}, 409)
    private = body.get("visibility") == "private" or body.get("private") is True
    door.store.create(kind, id, user.name, private)
    return {"url": url, "name": id, "id": id}


@router.delete("/api/repos/delete")
async def delete(request: Request, door: TheDoor) -> dict[str, bool]:
    user, body = door.signed_in(request), await request.json()
    id = f"{body.get('organization') or user.name}/{body['name']}"
    door.store.delete(door.to_write(request, f"{body.get('type', 'model')}s", id))
    return {"success": True}


@router.put(API + "/settings")
async def settings(request: Request, door: TheDoor, kind: str, id: str) -> dict[str, Any]:
    repository, body = door.to_write(request, kind, id), await request.json()
    fields = {key: body[key] for key in ("private", "gated") if key in body}
    if "visibility" in body:
        fields["private"] = body["visibility"] == "private"
    with door.store.lock:
        repository.change(**fields)
    return {key: repository.state[key] for key in ("private", "gated")}


@router.get(API + "/refs")
def refs(request: Request, door: TheDoor, kind: str, id: str, include_prs: bool = False) -> dict[str, Any]:
    state = door.to_see(request, kind, id).state
    branches = [_ref("heads", *item) for item in state["branches"].items()]
    tags = [_ref("tags", *item) for item in state["tags"].items()]
    found = {"branches": branches, "tags": tags, "converts": []}
    return found | ({"pullRequests": [_pull_ref(pull) for pull in state["pulls"].values()]} if include_prs else {})


@router.post(API + "/branch/{name:path}")
async def add_branch(request: Request, door: TheDoor, kind: str, id: str, name: str) -> Any:
    repository, body = door.to_write(request, kind, id), json.loads(await request.body() or b"{}")
    start = repository.resolve(body.get("startingPoint") or MAIN)
    return _add_ref(door, repository, "branches", name, start)


@router.delete(API + "/branch/{name:path}")
def delete_branch(request: Request, door: TheDoor, kind: str, id: str, name: str) -> dict[str, bool]:
    return _delete_ref(door, door.to_write(request, kind, id), "branches", name)


@router.post(API + "/tag/{revision:path}")
async def add_tag(request: Request, door: TheDoor, kind: str, id: str, revision: str) -> Any:
    repository, body = door.to_write(request, kind, id), await request.json()
    return _add_ref(door, repository, "tags", body["tag"], repository.resolve(revision))


@router.delete(API + "/tag/{name:path}")
def delete_tag(request: Request, door: TheDoor, kind: str, id: str, name: str) -> dict[str, bool]:
    return _delete_ref(door, door.to_write(request, kind, id), "tags", name)


@router.get(API + "/commits/{revision:path}")
def commits(request: Request, door: TheDoor, kind: str, id: str, revision: str) -> list[dict[str, Any]]:
    return [_log(commit) for commit in door.to_see(request, kind, id).history(revision)]


@router.get(API + "/revision/{revision:path}")
def revision_info(request: Request, door: TheDoor, kind: str, id: str, revision: str) -> dict[str, Any]:
    repository = door.to_see(request, kind, id)
    return _info(repository, repository.resolve(revision))


@router.get(API + "/tree/{rest:path}")
def tree(request: Request, door: TheDoor, kind: str, id: str, rest: str, recursive: bool = False) -> Any:
    commit, below = door.to_see(request, kind, id).split(rest)
    return _list(commit, below, recursive)


@router.post(API + "/paths-info/{revision:path}")
async def paths_info(request: Request, door: TheDoor, kind: str, id: str, revision: str) -> list[dict[str, Any]]:
    commit = door.to_see(request, kind, id).resolve(revision)
    wanted = parse_qs((await request.body()).decode()).get("paths", [])
    return [_file(path, commit.files[path]) for path in wanted if path in commit.files]


@router.get(API)
def info(request: Request, door: TheDoor, kind: str, id: str) -> dict[str, Any]:
    repository = door.to_see(request, kind, id)
    return _info(repository, repository.resolve(MAIN))


def _ref(namespace: str, name: str, commit: str) -> dict[str, str]:
    return {"name": name, "ref": f"refs/{namespace}/{name}", "targetCommit": commit}


def _pull_ref(pull: dict[str, Any]) -> dict[str, str]:
    ref = f"{PULL}{pull['num']}"
    return {"name": ref, "ref": ref, "targetCommit": pull["head"]}


def _add_ref(door: Door, repository: Repository, namespace: str, name: str, commit: Commit) -> Any:
    if name in repository.state[namespace]:
        return JSONResponse({"error": "Reference already exists"}, 409)
    with door.store.lock:
        repository.change(**{namespace: {**repository.state[namespace], name: commit.id}})
    return {"success": True}


def _delete_ref(door: Door, repository: Repository, namespace: str, name: str) -> dict[str, bool]:
    if name not in repository.state[namespace] or name == MAIN:
        raise Refusal(404, f"Invalid reference: {name}", code="RevisionNotFound")
    with door.store.lock:
        kept = {key: value for key, value in repository.state[namespace].items() if key != name}
        repository.change(**{namespace: kept})
    return {"success": True}


def _log(commit: Commit) -> dict[str, Any]:
    return {
        "id": commit.id,
        "title": commit.title,
        "message": commit.message,
        "date": commit.date,
        "authors": [{"user": commit.author}],
    }


def _info(repository: Repository, commit: Commit) -> dict[str, Any]:
    siblings = []
    for path, entry in sorted(commit.files.items()):
        file = _file(path, entry)
        siblings.append({"rfilename": path, "size": entry.size, "blobId": entry.oid, "lfs": file.get("lfs")})
    return {
        "_id": repository.id,
        "id": repository.id,
        "author": repository.state["owner"],
        "sha": commit.id,
        "private": repository.state["private"],
        "gated": repository.state["gated"],
        "disabled": False,
        "lastModified": commit.date,
        "createdAt": repository.state["created"],
        "cardData": card_data(repository, commit),
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
    }


def card_data(repository: Repository, commit: Commit) -> dict[str, Any]:
    """The YAML head of the README."""
    readme = commit.files.get("README.md")
    if readme is None or readme.sha256:
        return {}
    head = repository.blob(readme.oid).read_text(errors="replace").split("---\n", 2)
    return (yaml.safe_load(head[1]) or {}) if len(head) == 3 and not head[0].strip() else {}


def _file(path: str, entry: Entry) -> dict[str, Any]:
    file: dict[str, Any] = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid}
    if entry.sha256:
        file["lfs"] = {"oid": entry.sha256, "sha256": entry.sha256, "size": entry.size, "pointerSize": 134}
    return file


def _list(commit: Commit, below: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{below}/" if below else ""
    inside = {path: entry for path, entry in sorted(commit.files.items()) if path.startswith(prefix)}
    if below and not inside:
        raise Refusal(404, f"{below} does not exist", code="EntryNotFound")
    folders = {parent for path in inside for parent in _parents(path) if parent.startswith(prefix)}
    listed: list[dict[str, Any]] = [
        {"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)
    ]
    listed += [_file(path, entry) for path, entry in inside.items()]
    return [item for item in listed if recursive or "/" not in item["path"][len(prefix) :]]


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]
