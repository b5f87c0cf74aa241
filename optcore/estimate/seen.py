"""What finished stages took, as a file of JSON lines in the work folder: the next run here learns from it."""

import fcntl
from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from optcore.errors import RecipeError
from optcore.estimate.document import StageCostSeen

FILE = "stage-costs.jsonl"
_MOST = 2000
"""Lines that are kept, the latest ones."""
_LISTED: TypeAdapter[list[StageCostSeen]] = TypeAdapter(list[StageCostSeen])


def read_seen(work: Path) -> list[StageCostSeen]:
    """What runs on a work folder left; a file or line that cannot be read, such as half of one, is passed over."""
    try:
        lines = (work / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [found for line in lines[-_MOST:] if (found := _read(line))]


def note_seen(work: Path, seen: StageCostSeen) -> None:
    """Append one; of a file that has grown too long the older half goes."""
    path = work / FILE
    with (work / f"{FILE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with path.open("a", encoding="utf-8") as file:
            file.write(seen.model_dump_json() + "\n")
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if len(lines) > _MOST:
            part = path.with_suffix(".part")
            part.write_text("\n".join(lines[-_MOST // 2 :]) + "\n", encoding="utf-8")
            part.replace(path)


def load_rates_file(path: Path) -> list[StageCostSeen]:
    """A JSON list that somebody else kept, such as a service. Raises `RecipeError` for anything else."""
    try:
        return _LISTED.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else f"{error.error_count()} faults"
        raise RecipeError(
            f"cannot read finished stages from {path.name}: {why}", remedy="give a JSON list of stage costs"
        ) from error


def merged(kept: Iterable[StageCostSeen], given: Iterable[StageCostSeen]) -> tuple[StageCostSeen, ...]:
    """Both, none of them twice: a service may have heard of the runs whose costs lie here."""
    return tuple(dict.fromkeys((*given, *kept)))


def _read(line: str) -> StageCostSeen | None:
    try:
        return StageCostSeen.model_validate_json(line)
    except ValidationError:
        return None
