"""Large files on their way in: LFS over HTTP, in one piece or in parts, or xet by a folder."""

import math
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from demo.hub.access import Door
from demo.hub.deps import PartBytes, TheDoor, TheSigner
from demo.hub.refusal import Refusal
from demo.hub.routes_repos import API
from demo.hub.signature import Signer

router = APIRouter()


@router.get(API + "/xet-write-token/{revision:path}")
def xet_write_token(
    request: Request, door: TheDoor, kind: str, id: str, revision: str, create_pr: bool = False
) -> Response:
    _ = door.to_propose(request, kind, id) if create_pr else door.to_push(request, kind, id, revision)
    connection = door.store.xet.connection()
    names = {"X-Xet-Cas-Url": "casUrl", "X-Xet-Access-Token": "accessToken", "X-Xet-Token-Expiration": "exp"}
    return JSONResponse(connection, headers={header: str(connection[name]) for header, name in names.items()})


@router.post("/datasets/{id:repo}.git/info/lfs/objects/batch")
async def batch_of_dataset(request: Request, door: TheDoor, signer: TheSigner, part_bytes: PartBytes, id: str) -> Any:
    door.to_propose(request, "datasets", id)
    return _batch(door, signer, part_bytes, str(request.base_url), await request.json())


@router.post("/{id:repo}.git/info/lfs/objects/batch")
async def batch_of_model(request: Request, door: TheDoor, signer: TheSigner, part_bytes: PartBytes, id: str) -> Any:
    door.to_propose(request, "models", id)
    return _batch(door, signer, part_bytes, str(request.base_url), await request.json())


@router.put("/_lfs/{oid}")
async def put_object(request: Request, door: TheDoor, signer: TheSigner, oid: str) -> dict[str, bool]:
    signer.check(request)
    whole = door.store.part(oid, 0)
    await door.store.receive(request.stream(), whole)
    if not door.store.adopt(whole, oid):
        raise Refusal(400, "the content is not what its SHA-256 says")
    return {"success": True}


@router.put("/_lfs/{oid}/{number:int}")
async def put_part(request: Request, door: TheDoor, signer: TheSigner, oid: str, number: int) -> Response:
    signer.check(request)
    digest = await door.store.receive(request.stream(), door.store.part(oid, number))
    return Response(headers={"ETag": f'"{digest}"'})


@router.post("/_lfs/{oid}/complete")
async def complete(request: Request, door: TheDoor, signer: TheSigner, oid: str) -> dict[str, bool]:
    signer.check(request)
    if not door.store.join(oid, len((await request.json())["parts"])):
        raise Refusal(400, "the parts are not what the SHA-256 says")
    return {"success": True}


@router.post("/_lfs/{oid}/verify")
async def verify(request: Request, door: TheDoor, signer: TheSigner, oid: str) -> dict[str, bool]:
    signer.check(request)
    if not door.store.ensure(oid, int((await request.json())["size"])):
        raise Refusal(404, "no such object")
    return {"success": True}


def _batch(door: Door, signer: Signer, part_bytes: int, base: str, body: dict[str, Any]) -> dict[str, Any]:
    if "multipart" not in body.get("transfers", []):
        part_bytes = 1 << 62
    objects = []
    for item in body["objects"]:
        oid, size = str(item["oid"]), int(item["size"])
        here = door.store.ensure(oid, size)
        actions = {} if here else _actions(signer, f"{base}_lfs/{oid}", size, part_bytes)
        objects.append({"oid": oid, "size": size, **actions})
    return {"transfer": "multipart" if part_bytes < 1 << 62 else "basic", "objects": objects}


def _actions(signer: Signer, url: str, size: int, part_bytes: int) -> dict[str, Any]:
    """Where to put an object; without actions, a client knows that it is here already."""
    count = math.ceil(size / part_bytes)
    upload: dict[str, Any] = {"href": signer.sign(url)}
    if count > 1:
        parts = {str(number): signer.sign(f"{url}/{number}") for number in range(1, count + 1)}
        upload = {"href": signer.sign(f"{url}/complete"), "header": {"chunk_size": str(part_bytes), **parts}}
    return {"actions": {"upload": upload, "verify": {"href": signer.sign(f"{url}/verify")}}}
