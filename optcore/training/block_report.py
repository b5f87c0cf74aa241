"""What training layer by layer won: the whole model against the dense one, streamed over the validation windows."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from optcore.durable import write_settled
from optcore.evaluate.fidelity_stream import divergences
from optcore.evaluate.side_by_side import SideBySide
from optcore.report import Series
from optcore.training.block_loop import BlockOutcome
from optcore.training.quantized_writer import restore_quantized
from optcore.training.window_facts import WindowFacts
from optcore.training.windows import Windows

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.training import Training

Values = dict[str, float]
"""`kl`, `cross_entropy` (nats a token) and `agreement` (share) of a quantized model, against the dense one."""


def measured_once(run: "Run", folder: Path, windows: Windows, name: str) -> Values:
    """Measure a quantized checkpoint, or find what an earlier process of this stage measured under the name."""
    path = run.records / f"{name}.json"
    if not path.exists():
        write_settled(path, json.dumps(_measured(run, folder, windows)))
    found: Values = json.loads(path.read_text())
    return found


def keep_or_restore(run: "Run", windows: Windows, start: Values, *, trained: bool) -> Values:
    """Leave what we started from in `run.out` where nothing was trained or nothing won; what its content measures."""
    end = measured_once(run, run.out, windows, "end") if trained else start
    if trained and end["kl"] < start["kl"]:
        return end
    if trained:
        run.notice(
            f"training lowered errors of layers, but not the KL ({start['kl']:.3g}, now {end['kl']:.3g}): undone"
        )
    restore_quantized(run)
    return start


def note_blocks(
    run: "Run",
    technique: "Training",
    blocks: Sequence[BlockOutcome],
    values: tuple[Values, Values],
    data: WindowFacts,
) -> None:
    """Fill the stage's results; `values` before and after."""
    errors = {"before training": [one.start for one in blocks], "after training": [one.end for one in blocks]}
    curves = [
        Series(
            name=f"{run.stage}-error-{title[:6].strip()}", title=f"{run.stage}: {title}", points=tuple(enumerate(of))
        )
        for title, of in errors.items()
    ]
    run.results["series"] = [curve.model_dump(mode="json") for curve in curves if curve.points]
    run.results["training"] = {
        "steps": technique.steps if blocks else 0,
        "blocks": [{"start": one.start, "best": one.end, "best_step": one.best} for one in blocks],
        "start": values[0],
        "best": values[1],
        "tokens": technique.steps * technique.batch * data.length if blocks else 0,
        "data": data.model_dump(mode="json"),
    }


@torch.no_grad()
def _measured(run: "Run", folder: Path, windows: Windows) -> Values:
    facts = windows.facts
    tokens_ST = windows.read(range(facts.training, facts.windows)).tokens_BT
    models = SideBySide(replace(run, source=folder, checkpoint=folder), has_baseline=False)
    models.walk([tokens_ST])
    found = divergences(models, tokens_ST)["result"]
    nats = found.negative_log_likelihood / found.tokens
    return {"cross_entropy": nats, "kl": found.mean_kl, "agreement": found.agreement}
