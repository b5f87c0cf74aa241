"""The model after each entry of a chain that changes its structure: what each of them bought, and at what price."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from optcore.report import Measurement, Step
from optcore.sizes import parameters, weight_bytes


def measured_step(stage: str, what: str, weights: Path, dense: Path, rows: Iterable[dict[str, Any]]) -> Step:
    """A step from what an evaluation measured: the bytes are those of `weights`, the parameters those of `dense`."""
    measured = [Measurement.model_validate(row) for row in rows]
    return Step(
        stage=stage,
        what=what,
        parameters=parameters(dense),
        weight_bytes=weight_bytes(weights),
        values={row.name: row.result for row in measured if row.result is not None},
    )


def all_steps(
    between: Sequence[Step], source: Path, exported: Path, dense: Path, last: str, rows: Sequence[dict[str, Any]]
) -> tuple[Step, ...]:
    """The source, the steps between, and the exported result, whose `rows` hold the source's values too.

    Nothing for a chain that was not measured on the way. `last` is what its last entry did, for people.
    """
    if not between:
        return ()
    before = [Measurement.model_validate(row) for row in rows]
    first = Step(
        stage="",
        what="source",
        parameters=parameters(source),
        weight_bytes=weight_bytes(source),
        values={row.name: row.source for row in before if row.source is not None},
    )
    return (first, *between, measured_step("export", last, exported, dense, rows))
