"""One file of an artifact as an answer: the whole of it or a range (RFC 9110, section 14), a block at a time."""

import re
from collections.abc import Mapping
from typing import Annotated, NamedTuple
from urllib.parse import quote

from fastapi import Depends, Header
from fastapi.responses import StreamingResponse

from api.errors import BadRequest, NotFound, RangeNotSatisfiable
from api.files import ArtifactStore, name_of
from api.store.models import Artifact, Job

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Wanted(NamedTuple):
    """What a client asks for."""

    range: str | None = None
    if_range: str | None = None


async def wanted(
    range: Annotated[str | None, Header(description="One range of bytes.")] = None,
    if_range: Annotated[
        str | None, Header(description="The `ETag` that the range is meant for; the whole file if it is another.")
    ] = None,
) -> Wanted:
    """The headers of the request."""
    return Wanted(range, if_range)


WantedDep = Annotated[Wanted, Depends(wanted)]


def answer(
    store: ArtifactStore, job: Job, file: Artifact, asked: Wanted, *, media_type: str, headers: Mapping[str, str]
) -> StreamingResponse:
    """The file, or the range of it. Raises `NotFound`, `BadRequest`, `RangeNotSatisfiable` and `StoreAway`."""
    name, etag = name_of(job.id, job.epoch, file.path), f'"{file.sha256}"'
    if store.size_bytes(name) != file.bytes:
        raise NotFound("the file is no longer where it was stored", remedy="run the recipe again")
    part = asked.range if asked.if_range in (None, etag) else None
    begin, end = (0, file.bytes) if part is None else _bounds(part, file.bytes)
    described = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Length": str(end - begin), **headers}
    if part is not None:
        described["Content-Range"] = f"bytes {begin}-{end - 1}/{file.bytes}"
    return StreamingResponse(
        store.read(name, begin, end),
        status_code=200 if part is None else 206,
        media_type=media_type,
        headers=described,
    )


def attachment(path: str) -> dict[str, str]:
    """Have a browser save a file under its own name."""
    return {"Content-Disposition": f"attachment; filename*=utf-8''{quote(path.rpartition('/')[2])}"}


def _bounds(value: str, size_bytes: int) -> tuple[int, int]:
    """Where a range begins, and where it is over."""
    match = _RANGE.fullmatch(value.strip())
    if match is None or match.groups() == ("", ""):
        raise BadRequest("the Range header is not one range of bytes", remedy="send bytes=FIRST-LAST or bytes=FIRST-")
    first, last = match.groups()
    if first and last and int(first) > int(last):
        raise BadRequest("the Range header ends before it begins", remedy="send bytes=FIRST-LAST")
    if (first and int(first) >= size_bytes) or (not first and not int(last)):
        error = RangeNotSatisfiable(f"the file has {size_bytes} bytes", remedy="ask for a range inside of it")
        error.headers = {"Content-Range": f"bytes */{size_bytes}"}
        raise error
    if not first:
        return max(0, size_bytes - int(last)), size_bytes
    return int(first), min(int(last) + 1, size_bytes) if last else size_bytes
