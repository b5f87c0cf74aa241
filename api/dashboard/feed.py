"""The history of a job in words."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lathe.models import JobEvent
from optcore.report.numbers import format_bytes, format_number, format_seconds

MAX_characters = 2000
_BAD = {"job.failed", "run_failed", "publish.failed"}
_GOOD = {"job.succeeded", "publish.published"}
_SILENT = {"progress"}
"""Told by the table of stages."""

_ASKED = {"submitted", "resumed", "retried"}

Data = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of the feed."""

    seq: int
    at: datetime
    tone: str
    """`good`, `bad`, `notice` or `plain`."""
    text: str


def lines(events: Iterable[JobEvent]) -> list[Line]:
    """Events worth reading, newest first."""
    return [_line(event) for event in reversed(list(events)) if event.type not in _SILENT]


def _line(event: JobEvent) -> Line:
    tell = _WORDS.get(event.type)
    text = tell(event.data) if tell else f"{event.type} {json.dumps(event.data, ensure_ascii=False)}"
    return Line(event.seq, event.at, _tone(event.type), text[:MAX_characters])


def _tone(type: str) -> str:
    if type in _BAD:
        return "bad"
    if type in _GOOD:
        return "good"
    return "notice" if type == "notice" else "plain"


def _queued(data: Data) -> str:
    reason = data.get("reason", "submitted")
    if reason in _ASKED:
        return str(reason).capitalize()
    return f"Queued again, attempt {data.get('attempt')}: {reason}"


def _failed(data: Data) -> str:
    failure = data.get("failure") or {}
    return f"Failed: {failure.get('message', 'no reason given')}"


def _finished(data: Data) -> str:
    if data.get("cached"):
        return f"Stage {data['stage']} was done before; nothing was run"
    return f"Stage {data['stage']} finished in {format_seconds(data['seconds'])}"


def _estimated(data: Data) -> str:
    stages = data["stages"]
    seconds = sum(stage["seconds"] for stage in stages)
    memory = max((stage["host_memory_bytes"] for stage in stages), default=0)
    return f"Expected {format_seconds(seconds)} for {len(stages)} stages, with {format_bytes(memory)} at the peak"


def _metric(data: Data) -> str:
    step = "" if data.get("step") is None else f", step {data['step']}"
    return f"{data['stage']}: {data['name']} = {format_number(data['value'])}{step}"


def _notice(data: Data) -> str:
    stage, message = data["stage"], data["message"]
    return str(message) if message.startswith(f"{stage}:") else f"{stage}: {message}"


_WORDS: dict[str, Callable[[Data], str]] = {
    "job.queued": _queued,
    "job.running": lambda data: f"Claimed by worker {data.get('worker_id', '')}",
    "job.pausing": lambda _: "Pause requested",
    "job.paused": lambda _: "Paused",
    "job.cancelling": lambda _: "Cancel requested",
    "job.cancelled": lambda _: "Cancelled",
    "job.succeeded": lambda data: f"Succeeded with {data.get('files', 0)} files",
    "job.failed": _failed,
    "run_failed": _failed,
    "publish.pending": lambda data: "Publishing again later" if data.get("failure") else "Publishing is due",
    "publish.uploading": lambda _: "Publishing to the Hub",
    "publish.published": lambda data: f"Published to {data.get('url', 'the Hub')}",
    "publish.failed": lambda data: "Publishing: " + _failed(data).lower()[:1] + _failed(data)[1:],
    "run_planned": lambda data: f"Planned {len(data['stages'])} stages: {', '.join(data['stages'])}",
    "run_estimated": _estimated,
    "recipe_resolved": lambda _: "Pinned the recipe's sources to commits and digests",
    "stage_started": lambda data: f"Stage {data['stage']} started",
    "stage_finished": _finished,
    "metric": _metric,
    "notice": _notice,
    "run_finished": lambda data: f"Artifact complete, digest {data['digest']}",
}
