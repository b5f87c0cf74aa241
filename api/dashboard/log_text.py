"""The engine's log as people read it: without a terminal's colours, whole, or what one stage or attempt wrote."""

import re
from collections.abc import Iterator
from datetime import datetime

from sqlalchemy.orm import Session

from api.store import events, logs
from api.store.models import LogChunk
from api.store.session import Sessions
from lathe.models import LogChunk as Piece

PAGE_bytes = 256 * 1024
"""Of a page; the script keeps some more while it follows."""
END_lines = 14
_END_bytes = 16 * 1024
_MAX_SPANS = 200
_BATCH = 200
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")
_OTHER_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def readable(text: str) -> str:
    """Text without escape sequences; a bar that a program drew over itself is one line each time."""
    lines = _TERMINAL.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return _OTHER_CONTROLS.sub("�", lines)


def piece(row: LogChunk) -> Piece:
    """A stored piece, readable."""
    return Piece(seq=row.seq, epoch=row.epoch, at=row.at, text=readable(row.text))


def end(session: Session, job_id: str) -> str:
    """The last lines."""
    rows, _ = logs.before(session, job_id, None, _END_bytes)
    return "\n".join(readable("".join(row.text for row in rows)).rstrip("\n").split("\n")[-END_lines:])


def part(session: Session, job_id: str, epoch: int | None, stage: str | None) -> logs.Part:
    """The part of the log that an attempt, a stage, or a stage in an attempt wrote."""
    return logs.Part(epoch, None if stage is None else _turns(session, job_id, stage))


def whole(sessions: Sessions, job_id: str, chosen: logs.Part) -> Iterator[str]:
    """All of it, a batch at a time, each read in a transaction of its own."""
    seq = 0
    while True:
        with sessions() as session:
            rows = logs.after(session, job_id, seq, _BATCH, chosen)
        if not rows:
            return
        seq = rows[-1].seq
        yield readable("".join(row.text for row in rows))


def _turns(session: Session, job_id: str, stage: str) -> list[tuple[datetime, datetime | None]]:
    """When the stage ran, from its start to whatever ended it."""
    ends = ("stage_finished", "job.queued", "job.paused", "job.succeeded", "job.failed", "job.cancelled")
    spans: list[tuple[datetime, datetime | None]] = []
    begun: datetime | None = None
    for row in events.of_types(session, job_id, ("stage_started", *ends), 10 * _MAX_SPANS):
        mine = row.data.get("stage") == stage
        if row.type == "stage_started" and mine:
            begun = row.at
        elif begun is not None and (mine or row.type.startswith("job.")):
            spans.append((begun, row.at))
            begun = None
    return [*spans, *([(begun, None)] if begun else [])][-_MAX_SPANS:]
