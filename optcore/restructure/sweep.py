"""Merges at several weights, the one kept under which calibration text is likeliest."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from optcore.calibration.propagate import calibration_windows
from optcore.errors import RecipeError
from optcore.evaluate.likelihood import mean_cross_entropy
from optcore.links import link_checkpoint
from optcore.report import Series
from optcore.streaming.decoder import Decoder

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.merge import Merge


def sweep(run: "Run", technique: "Merge", write: Callable[["Merge", Path], None]) -> None:
    """Write the best of `technique.sweep` and of the chain's own model (at 0) to `run.out`.

    `write` writes one merge to a folder. On disk are never more than the best so far and one candidate. The text is
    calibration's, which nothing else is measured on; of equals, the smaller value is kept.
    Raises `RecipeError` for a model that predicts no next token, before anything is written.
    """
    decoder = Decoder(run.checkpoint)
    if not decoder.is_causal:
        raise RecipeError(
            "a sweep asks how likely text is, and this model does not predict the next token",
            remedy="leave `sweep` out, and say how much of the others to take",
            field=f"{run.place}/sweep",
        )
    tokens_ST = calibration_windows(run, decoder)
    curve = {0.0: mean_cross_entropy(decoder, tokens_ST, run.scratch)}
    best, kept = 0.0, run.checkpoint
    for done, value in enumerate(sorted(set(technique.sweep)), start=1):
        candidate = run.scratch / f"candidate-{done}"
        candidate.mkdir(parents=True)
        write(technique.at(value), candidate)
        curve[value] = mean_cross_entropy(Decoder(candidate), tokens_ST, run.scratch)
        worse = candidate
        if curve[value] < curve[best]:
            best, kept, worse = value, candidate, kept
        if worse != run.checkpoint:
            shutil.rmtree(worse)
        run.progress("searching", done, len(set(technique.sweep)))
    _keep(run, kept)
    _tell(run, technique, curve, best)


def _keep(run: "Run", kept: Path) -> None:
    if kept == run.checkpoint:
        link_checkpoint(kept, run.out)
        return
    for path in kept.iterdir():
        path.rename(run.out / path.name)


def _tell(run: "Run", technique: "Merge", curve: dict[float, float], best: float) -> None:
    swept, points = technique.swept, tuple(point for point in curve.items() if math.isfinite(point[1]))
    run.results["sweep"] = {"of": swept, "best": best, "cross_entropy": points}
    title = f"Cross-entropy of calibration text by {swept} of the merge"
    series = Series(name="merge_sweep", title=title, unit="nats/token", points=points)
    run.results["series"] = [series.model_dump(mode="json")]
    own = " (the chain's own model: no merge was better)" if best == 0 else ""
    run.notice(f"{swept} {best:g} was kept{own}: {curve[best]:.4f} nats a token, {curve[0.0]:.4f} without the others")
