"""How much memory a machine has and has free, as far as our control groups go, and what our own limits leave of it."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

ROOM = 1.1
"""What is asked for beside what is reckoned, as a factor: allocators, buffers and libraries."""
_ROOT = Path("/")
_CACHED = ("inactive_file", "active_file")
"""Pages of files count as a group's memory, and the kernel drops them as soon as somebody needs the room."""


def machine_bytes(root: Path = _ROOT) -> float:
    """What all processes of our control group may still take together."""
    return max(0.0, min(_in_machine(root)["MemAvailable"], *map(_free_in, _groups(root))))


def capacity_bytes(root: Path = _ROOT) -> int:
    """What all processes of our control group may take together, whatever others hold at the moment."""
    limits = (_text(folder / "memory.max") for folder in _groups(root))
    return min([_in_machine(root)["MemTotal"], *(int(limit) for limit in limits if limit.isdecimal())])


def process_bytes() -> float:
    """What this process may still take by limits of its own; infinite without any."""
    return max(0.0, min(map(_of_process, (resource.RLIMIT_AS, resource.RLIMIT_DATA))))


def _in_machine(root: Path) -> dict[str, int]:
    """Bytes of each fact that the kernel tells in kB."""
    lines = (line.split() for line in (root / "proc/meminfo").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines}


def _groups(root: Path) -> Iterator[Path]:
    """Our control group (version 2) and all around it: each of them may have a limit."""
    mount, own = root / "sys/fs/cgroup", _own_group(root)
    for place in (own, *own.parents):
        yield mount / place


def _own_group(root: Path) -> Path:
    """Below the mount; the mount itself where our group is outside of what we can see."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return Path()
    found = next((Path(line.removeprefix("0::/")) for line in lines if line.startswith("0::/")), Path())
    return Path() if ".." in found.parts else found


def _free_in(folder: Path) -> float:
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # no memory controller, or the root of all groups
        return float("inf")
    if limit == "max":
        return float("inf")
    return float(limit) - float(used) + sum(float(facts.get(name, 0)) for name in _CACHED)


def _text(file: Path) -> str:
    """What it says; nothing where there is no such controller."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _of_process(kind: int) -> float:
    limit, _ = resource.getrlimit(kind)
    used = int(Path("/proc/self/statm").read_text().split()[0 if kind == resource.RLIMIT_AS else 5])
    return float("inf") if limit == resource.RLIM_INFINITY else float(limit - used * os.sysconf("SC_PAGE_SIZE"))
