"""What tests of a whole service on this machine share: its settings, its jobs, its processes."""

import os
from pathlib import Path
from typing import Any

from lathe_engine import COMMAND as ENGINE

from lathe.local.stack import Stack

EMBEDDED = {"LATHE_DATABASE_URL": "", "LATHE_REDIS_URL": "", "LATHE_ENGINE_COMMAND": ENGINE}
"""Servers of its own, whatever the environment offers to the other tests."""


def recipe(**wishes: str) -> dict[str, Any]:
    return {"model": {"path": "tiny"}, "chain": [{"technique": "ptq", "scheme": "fp8"}], "metadata": wishes}


def port_of(stack: Stack) -> int:
    return int(stack.url.rsplit(":", 1)[1])


def processes_of(folder: Path) -> list[int]:
    """Live processes whose command line, environment or working directory names the folder, this one left out."""
    others = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [pid for pid in others if pid != os.getpid() and str(folder).encode() in traces_of(pid)]


def traces_of(pid: int) -> bytes:
    entry = Path(f"/proc/{pid}")
    try:
        return (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes() + os.readlink(entry / "cwd").encode()
    except OSError:  # it ended while we looked
        return b""
