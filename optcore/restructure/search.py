"""The shape that meets a target at the least loss: a grid, its KL as cut, and a short distillation of the best few."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from optcore.calibration.text import Texts
from optcore.errors import RecipeError
from optcore.report import Series
from optcore.restructure.candidates import Candidate, Trials
from optcore.restructure.counted import Counter
from optcore.restructure.latency import Stopwatch
from optcore.restructure.prune import prune_checkpoint
from optcore.restructure.shapes import Grid, Shape, grid_of, meeting
from optcore.restructure.width_plan import planned
from optcore.stage import DataWork
from optcore.streaming.decoder import Decoder
from optcore.techniques.distill import Distill
from optcore.techniques.training import Validation

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.prune import Prune
    from optcore.techniques.target import Target

_VALIDATION_windows = 8

Cost = Callable[[Shape], float]


def prune_to_target(run: "Run", technique: "Prune", target: "Target") -> None:
    """Write `run.checkpoint` to `run.out` in the shape that the search finds best, as cut, not distilled.

    Raises `RecipeError` for a target that the model meets already, or cannot meet within the search's limits, and
    `DataError` for too little text, before any heavy work.
    """
    _check_task(run, target)
    decoder = Decoder(run.checkpoint)
    distill = _distill(technique, decoder)
    tokens_ST = _held_out(run, technique, distill, decoder.longest_sequence)
    grid = grid_of(run, decoder, technique)
    if (most := grid.smallest.asked(technique)).cuts:
        planned(decoder, most, run.scratch)
    cost = _cost(run, decoder, technique, target, grid)
    limit = _limit(target, grid, cost)
    shapes = meeting(grid, cost, limit)
    found = _ranked(run, technique, distill, tokens_ST, shapes)
    prune_checkpoint(run, found[0].shape.asked(technique))
    run.results["search"] = {"measure": target.measure, "whole": cost(grid.largest), "limit": limit}
    _tell(run, technique, target, found, cost)


def _check_task(run: "Run", target: "Target") -> None:
    if run.task == "text-classification":
        raise RecipeError(
            "`target` ranks shapes by what they predict of the next token, and this model gives labels",
            remedy="name the cuts instead: `ffn`, `hidden`, `depth`",
            field="/chain",
        )
    if target.measure == "latency" and run.task != "text-generation":
        raise RecipeError(
            "a latency is that of a decode step, and this model does not generate",
            remedy="name `params` or `bytes` as the target",
            field="/chain",
        )


def _distill(technique: "Prune", decoder: Decoder) -> Distill | None:
    """The short distillation; None where none is asked for."""
    search = technique.search
    if not search.steps:
        return None
    return Distill(
        steps=search.steps,
        batch=search.batch,
        sequence_length=min(search.sequence_length, decoder.longest_sequence),
        learning_rate=search.learning_rate,
        validation=Validation(samples=_VALIDATION_windows, every=max(1, search.steps // 2)),
        processes=1,
    )


def _held_out(run: "Run", technique: "Prune", distill: Distill | None, longest: int) -> torch.Tensor:
    """Windows to compare on, [S, T]: behind all text that activity is measured on or that is learned from."""
    length = min(technique.search.sequence_length, longest)
    learned = (distill.windows + _VALIDATION_windows) * length if distill else 0
    skipped = max(run.calibration.samples * run.calibration.sequence_length, learned)
    texts = Texts(run.checkpoint, run.calibration, run.data_files)
    return texts.later_windows(skipped, technique.search.samples, length)


def _cost(run: "Run", decoder: Decoder, technique: "Prune", target: "Target", grid: Grid) -> Cost:
    """What the target bounds, of any shape of the grid."""
    if target.measure == "latency":
        return Stopwatch(decoder, technique, run.scratch).milliseconds
    counter, measure = Counter(decoder, technique, grid), target.measure
    return lambda shape: float(getattr(counter.size(shape), measure))


def _limit(target: "Target", grid: Grid, cost: Cost) -> float:
    """The bound as an amount. Raises `RecipeError` for one that changes nothing, or that no shape meets."""
    whole, least = cost(grid.largest), cost(grid.smallest)
    limit = target.limit(whole)
    if limit >= whole:
        raise RecipeError(
            f"the model meets the target already: it has {_said(whole)} {target.unit}, {_said(limit)} are allowed",
            remedy="name a smaller target, or leave this entry out",
            field="/chain",
        )
    if least > limit:
        raise RecipeError(
            f"no shape within the search's limits has {_said(limit)} {target.unit}: the smallest has {_said(least)}, "
            f"{least / whole:.3f} of the whole",
            remedy="name a larger target, or raise `search.most_width` or `search.most_depth`",
            field="/chain",
        )
    return limit


def _said(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 1000 else f"{amount:.3g}"


def _ranked(
    run: "Run", technique: "Prune", distill: Distill | None, tokens_ST: torch.Tensor, shapes: list[Shape]
) -> list[Candidate]:
    """All candidates, the best first: those that were distilled, then the others."""
    trials = Trials(run, technique, tokens_ST)
    found = sorted(trials.cut(shapes), key=lambda one: one.kl)
    count = min(technique.search.candidates, len(found))
    if distill is None or count < 2:  # there is nothing to choose between
        return found
    windows = _windows(run, distill)
    tried: list[Candidate] = []
    for one in found[:count]:
        tried.append(trials.distilled(one, distill, windows))
        run.progress("searching", len(tried), count)
    return [*sorted(tried, key=lambda one: (one.distilled_kl, one.kl)), *found[count:]]


def _windows(run: "Run", distill: Distill) -> Path:
    """The calibration text as training windows, the same ones for all candidates."""
    from optcore.training.prepare import prepare_windows

    folder = run.scratch / "windows"
    folder.mkdir(parents=True, exist_ok=True)
    work = DataWork(
        data=distill.data,
        sequence_length=distill.sequence_length,
        training=distill.windows,
        validation=distill.validation.samples,
    )
    prepare_windows(replace(run, out=folder, text_files=run.data_files), work)
    return folder


def _tell(run: "Run", technique: "Prune", target: "Target", found: list[Candidate], cost: Cost) -> None:
    best, is_timed = found[0], target.measure == "latency"
    as_cut = min(found, key=lambda one: one.kl)
    names = [f"{size} {key}" for key, (_, size) in best.sizes.items()]
    said = ", ".join(
        [*([f"{best.shape.depth} layer{'s' * (best.shape.depth > 1)} less"] if best.shape.depth else []), *names]
    )
    run.notice(f"of {len(found)} shapes that meet {target}: {said} ({best.params} parameters, KL {best.kl:.4f} as cut)")
    if best.distilled_kl is not None:
        same = "it is the best as cut too" if best is as_cut else f"the best as cut came to {as_cut.distilled_kl:.4f}"
        steps = technique.search.steps
        run.notice(f"KL {best.distilled_kl:.4f} after {steps} steps of distillation decided; {same}")
    if is_timed:
        run.notice(f"{cost(best.shape):.3g} ms a decode step, on this machine and with weights drawn at random")
    rows = [one.model_dump(mode="json") | ({"latency": cost(one.shape)} if is_timed else {}) for one in found]
    for row, one in zip(rows, found, strict=True):
        row["shape"] = one.shape._asdict()
    run.results["candidates"] = rows
    run.results["series"] = [curve.model_dump(mode="json") for curve in _curves(run.stage, found)]


def _curves(stage: str, found: list[Candidate]) -> list[Series]:
    """KL against parameters, as cut and distilled."""
    cut = [(float(one.params), one.kl) for one in found]
    distilled = [(float(one.params), one.distilled_kl) for one in found if one.distilled_kl is not None]
    titles = {"cut": ("as cut", cut), "distilled": ("after a short distillation", distilled)}
    return [
        Series(
            name=f"{stage}-search-{name}",
            title=f"{stage}: KL to the whole model by parameters, {title}",
            unit="nats/token",
            points=tuple(sorted(points)),
        )
        for name, (title, points) in titles.items()
        if points
    ]
