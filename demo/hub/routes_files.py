"""Downloads. The Hub sends readers of large files elsewhere; here they lie on the same host, so they are answered."""

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response

from demo.hub.access import Door
from demo.hub.deps import TheDoor

BOTH = ["GET", "HEAD"]


router = APIRouter()


@router.api_route("/datasets/{id:repo}/resolve/{rest:path}", methods=BOTH)
def resolve_dataset(request: Request, door: TheDoor, id: str, rest: str) -> Response:
    return _resolve(door, request, "datasets", id, rest)


@router.api_route("/{id:repo}/resolve/{rest:path}", methods=BOTH)
def resolve_model(request: Request, door: TheDoor, id: str, rest: str) -> Response:
    return _resolve(door, request, "models", id, rest)


def _resolve(door: Door, request: Request, kind: str, id: str, rest: str) -> Response:
    repository = door.to_read(request, kind, id)
    commit, path = repository.split(rest)
    entry = repository.entry(commit, path)
    headers = {"X-Repo-Commit": commit.id, "ETag": f'"{entry.sha256 or entry.oid}"'}
    if entry.sha256 is None:
        return FileResponse(repository.blob(entry.oid), headers=headers, media_type="text/plain; charset=utf-8")
    headers |= {"X-Linked-ETag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
    return FileResponse(door.store.lfs(entry.sha256), headers=headers, media_type="application/octet-stream")
