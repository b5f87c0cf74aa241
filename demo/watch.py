"""A job's events as lines for a terminal."""

import sys
from typing import Any

from lathe import Client
from optcore.report.numbers import format_bytes, format_seconds


def watch(client: Client, job_id: str) -> None:
    """Follow a job to its end, and its publication; progress rewrites one line where there is a terminal."""
    for event in client.jobs.events(job_id, stream=True):
        if event.type == "progress":
            _rewrite(event.data)
        elif line := _line(event.type, event.data):
            _clear()
            print(f"  {line}", flush=True)
    client.jobs.wait(job_id)
    client.jobs.wait_published(job_id)


def _line(type_: str, data: dict[str, Any]) -> str:
    if type_ == "stage_finished":
        took = "found done" if data["cached"] else format_seconds(data["seconds"])
        return f"{data['stage']:<12} {took:>10}   peak memory {format_bytes(data['peak_memory_bytes'])}"
    if type_ == "notice":
        return f"{data['stage']}: {data['message']}"
    return type_ if type_.startswith(("job.", "publish.")) else ""


def _rewrite(data: dict[str, Any]) -> None:
    if sys.stdout.isatty():
        print(f"\r\033[K  {data['stage']:<12} {data['phase']} {data['done']}/{data['total']}", end="", flush=True)


def _clear() -> None:
    if sys.stdout.isatty():
        print("\r\033[K", end="")
