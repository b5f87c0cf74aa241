"""Pull requests over HTTP, as the Hub's discussions: open, list, look at, publish a draft, close, merge."""

from typing import Any

from fastapi import APIRouter, Request

from demo.hub import pull_request
from demo.hub.deps import TheDoor
from demo.hub.pull_request import Pull
from demo.hub.refusal import Refusal
from demo.hub.repository import MAIN, Repository
from demo.hub.routes_repos import API

PAGE = 50

router = APIRouter()


@router.get(API + "/discussions")
def discussions(
    request: Request, door: TheDoor, kind: str, id: str, p: int = 0, status: str = "", author: str = ""
) -> dict[str, Any]:
    repository = door.to_see(request, kind, id)
    found = [
        pull
        for pull in reversed(repository.state["pulls"].values())
        if author in ("", pull["author"])
        and (not status or (pull["status"] in ("open", "draft")) == (status == "open"))
    ]
    shown = [_head(repository, pull) for pull in found[p * PAGE : (p + 1) * PAGE]]
    return {"discussions": shown, "count": len(found), "start": p * PAGE, "numClosedDiscussions": 0}


@router.post(API + "/discussions")
async def open_discussion(request: Request, door: TheDoor, kind: str, id: str) -> dict[str, Any]:
    repository, user = door.to_propose(request, kind, id), door.signed_in(request)
    body = await request.json()
    if not body.get("pullRequest"):
        raise Refusal(501, "this peer has pull requests, and no other discussions")
    words = {"title": str(body["title"]), "description": str(body.get("description", "")), "author": user.name}
    with door.store.lock:
        fresh = Repository(repository.folder)
        pull = pull_request.open_pull(fresh, base=MAIN, start=fresh.resolve(MAIN), status="draft", **words)
    return {"num": pull["num"], "pullRequest": True, "url": f"{request.base_url}{id}/discussions/{pull['num']}"}


@router.get(API + "/discussions/{num:int}")
def discussion(request: Request, door: TheDoor, kind: str, id: str, num: int) -> dict[str, Any]:
    repository = door.to_see(request, kind, id)
    pull = pull_request.find_pull(repository, num)
    conflicts = [] if pull["status"] == "merged" else pull_request.conflicts(repository, pull)
    changes = {"base": f"refs/heads/{pull['base']}"} | ({"mergeCommitId": pull["merged"]} if pull["merged"] else {})
    more = {"events": pull["events"], "filesWithConflicts": conflicts, "changes": changes, "diff": ""}
    return _head(repository, pull) | more


@router.post(API + "/discussions/{num:int}/status")
async def change_status(request: Request, door: TheDoor, kind: str, id: str, num: int) -> dict[str, Any]:
    repository, user = door.to_push(request, kind, id, f"refs/pr/{num}"), door.signed_in(request)
    wanted = (await request.json())["status"]
    with door.store.lock:
        fresh = Repository(repository.folder)
        pull = pull_request.find_pull(fresh, num)
        if wanted not in ("open", "closed") or pull["status"] in ("merged", wanted):
            raise Refusal(400, f"a pull request that is {pull['status']} cannot become {wanted}")
        return {"newStatus": pull_request.set_status(fresh, pull, wanted, user.name)}


@router.post(API + "/discussions/{num:int}/merge")
async def merge(request: Request, door: TheDoor, kind: str, id: str, num: int) -> dict[str, Any]:
    repository, user = door.to_write(request, kind, id), door.signed_in(request)
    with door.store.lock:
        fresh = Repository(repository.folder)
        made = pull_request.merge(fresh, pull_request.find_pull(fresh, num), user.name)
    return {"success": True, "mergeCommitId": made.id}


def _head(repository: Repository, pull: Pull) -> dict[str, Any]:
    return {
        "num": pull["num"],
        "title": pull["title"],
        "status": pull["status"],
        "author": {"name": pull["author"]},
        "createdAt": pull["created"],
        "repo": {"name": repository.id, "type": repository.kind[:-1]},
        "isPullRequest": True,
    }
