"""A job's events as lines for a terminal."""

import sys
import time
from typing import Any

from lathe import Client
from lathe.models import Job
from optcore.report.numbers import format_bytes, format_seconds

_UPLOADING = ("pending", "uploading")


def watch(client: Client, job_id: str) -> Job:
    """Follow a job to its end, and its publication; progress rewrites one line where there is a terminal."""
    for event in client.jobs.events(job_id, stream=True):
        if event.type == "progress":
            _rewrite(event.data)
        elif line := _line(event.type, event.data):
            _clear()
            print(f"  {line}", flush=True)
    while (job := client.jobs.get(job_id)).publish.status in _UPLOADING:
        time.sleep(0.2)
    return job


def _line(type_: str, data: dict[str, Any]) -> str:
    if type_ == "stage_finished":
        took = "found done" if data["cached"] else format_seconds(data["seconds"])
        return f"{data['stage']:<12} {took:>10}   peak memory {format_bytes(data['peak_memory_bytes'])}"
    if type_ == "run_estimated":
        stages = data["stages"]
        return f"{len(stages)} stages to come, expected to take {format_seconds(sum(one['seconds'] for one in stages))}"
    if type_ == "notice":
        return f"{data['stage']}: {data['message']}"
    return type_ if type_.startswith(("job.", "publish.")) else ""


def _rewrite(data: dict[str, Any]) -> None:
    if sys.stdout.isatty():
        print(f"\r\033[K  {data['stage']:<12} {data['phase']} {data['done']}/{data['total']}", end="", flush=True)


def _clear() -> None:
    if sys.stdout.isatty():
        print("\r\033[K", end="")
