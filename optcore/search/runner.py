"""A candidate on its way: its walk through the work folder, and what came of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from optcore.artifact import Outcome
from optcore.errors import OptError
from optcore.estimate.document import Estimate, StageCostSeen
from optcore.evaluate import Fidelity
from optcore.plan import Result, evaluate_stage, export_stage, results, screen_stage, serve_stage, stage_names
from optcore.quantization import load_quantization
from optcore.recipe import Recipe
from optcore.search.contenders import Contender
from optcore.search.front import Point, point
from optcore.search.judgement import Screened
from optcore.sizes import parameters, weight_bytes
from optcore.stage import Inputs, StageRecord

SCREEN_windows = 8
"""Of the text that the report is measured on, or all where it is measured on fewer: the cheapest sample whose spread
tells two number formats apart."""
_OWN_CONTAINER = frozenset({"compact", "onnx"})
"""Targets whose files say little of the size of the checkpoint before them."""


class Walk(Protocol):
    """The walk of one chain, as `optcore.engine` makes it."""

    inputs: Inputs
    records: dict[str, StageRecord]
    lost_seconds: float
    """What its stages took that came to nothing."""

    def bring(self, recipe: Recipe) -> Recipe:
        """Fetch; the recipe with its commits pinned."""

    def foresee(self, recipe: Recipe, seen: Sequence[StageCostSeen]) -> Estimate | None:
        """What the stages behind the fetch will take, where that can be reckoned."""

    def follow(self, recipe: Recipe) -> None:
        """The whole chain."""

    def screen(self, recipe: Recipe, samples: int, sequence_length: int) -> StageRecord:
        """Measure what the chain left, window by window."""

    def finish(self, result: Result, recipe: Recipe) -> Outcome:
        """Write a result, and measure it before and after."""

    def notice(self, stage: str, message: str) -> None:
        """Say something that a person should know."""


@dataclass
class Runner:
    """One candidate; it begins when it is screened, and is finished when it has a point."""

    contender: Contender
    walk: Walk
    recipe: Recipe
    """Its own, with commits pinned."""
    screened: Screened | None = None
    outcome: Outcome | None = None
    point: Point | None = None
    refused: str = ""
    stopped: str = ""
    error: OptError | None = None

    @property
    def name(self) -> str:
        """What the names of its stages begin with."""
        return self.contender.name

    @property
    def is_waiting(self) -> bool:
        """Whether nothing was decided about it and nothing done."""
        return not (self.refused or self.stopped or self.error or self.screened)

    @property
    def is_in(self) -> bool:
        """Whether it was measured, and nothing went wrong with it."""
        return self.screened is not None and self.error is None

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of its stages as a run says them: those to come only while it may go on."""
        if self.refused or self.stopped or self.error:
            return tuple(f"{self.name}-{stage}" for stage in self.walk.records)
        planned = list(stage_names(self.recipe))
        planned.insert(planned.index(export_stage(self.recipe, self.main)), screen_stage(self.recipe))
        return tuple(f"{self.name}-{stage}" for stage in dict.fromkeys((*planned, *self.walk.records)))

    @property
    def main(self) -> Result:
        """What it is measured by."""
        return results(self.recipe)[0]

    @property
    def last_stages(self) -> Mapping[str, StageRecord]:
        """Those that one that was stopped does not have."""
        names = (stage(self.recipe, self.main) for stage in (export_stage, evaluate_stage, serve_stage))
        return {name: self.walk.records[name] for name in names if name in self.walk.records}

    def begin(self) -> None:
        """Follow the chain, and measure what it leaves on a few windows. Raises the stages' errors."""
        self.walk.follow(self.recipe)
        found: Mapping[str, object] = {}
        if (fidelity := self._fidelity()) and self.walk.inputs.task != "text-classification":
            samples = min(SCREEN_windows, fidelity.samples)
            found = self.walk.screen(self.recipe, samples, fidelity.sequence_length).results
        checkpoint = Path(self.walk.inputs.checkpoint)
        is_known = self.recipe.target.format not in _OWN_CONTAINER
        self.screened = Screened(
            name=self.name,
            size=packed_bytes(checkpoint, self.recipe) if is_known else None,
            parameters=parameters(checkpoint),
            kl_W=tuple(found.get("kl_windows", ())),  # type: ignore[arg-type]
            text=str(found.get("windows_digest", "")),
        )

    def finish(self) -> None:
        """Write the main result and measure it as a report does. Raises the stages' errors."""
        self.outcome = self.walk.finish(self.main, self.recipe)
        found, inputs = self.outcome.evaluated, self.outcome.inputs
        size, count = weight_bytes(Path(inputs.exported)), parameters(Path(inputs.checkpoint))
        self.point = point(found["measurements"], size, count, found.get("engine_runs", []))
        if self.point is None:
            self.error = OptError("its quality was not measured: see the notices of its evaluation")

    def _fidelity(self) -> Fidelity | None:
        return next((one for one in self.recipe.evaluate if isinstance(one, Fidelity)), None)


def packed_bytes(checkpoint: Path, recipe: Recipe) -> int:
    """Bytes of what a target is written from: codes and scales of a quantized checkpoint, unless all of it is made
    dense again."""
    description = load_quantization(checkpoint)
    if description is None or recipe.target.format == "dense":
        return weight_bytes(checkpoint)
    return sum((checkpoint / file).stat().st_size for file in description.files)
