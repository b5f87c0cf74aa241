"""A search on the shipped model: whether a short distillation ranks shapes otherwise than their KL as cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of

from optcore.evaluate.fidelity_stream import compare
from optcore.references import Calibration
from optcore.sizes import parameters
from optcore.techniques import Prune

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
CALIBRATION = Calibration(dataset="python-stdlib", samples=128, sequence_length=128)
SEARCH = {"steps": 50, "batch": 8, "sequence_length": 128, "learning_rate": 5e-4, "samples": 32, "candidates": 6}


def _candidates(model: Path, folder: Path, settings: dict[str, Any]) -> list[Any]:
    """Those of a search, the chosen one first; its checkpoint is in `folder / "out"`."""
    run = run_of(model, model, folder / "out", calibration=CALIBRATION)
    prune = Prune.model_validate({"target": {"params": 0.7}, "search": SEARCH, **settings})
    prune.apply(run)
    print(f"\n{prune.summary}: limit {run.results['search']['limit']:.0f}")  # type: ignore[index]
    for row in run.results["candidates"]:  # type: ignore[attr-defined]
        after = "" if row["distilled_kl"] is None else f"  distilled {row['distilled_kl']:.4f}"
        print(f"{row['shape']!s:<62} {row['params']:>8} parameters {row['bytes']:>8} bytes  KL {row['kl']:.4f}{after}")
    found = run.results["candidates"]
    assert isinstance(found, list)
    return found


def test_seven_tenths_of_the_parameters(stdlib_model: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    found = _candidates(stdlib_model, tmp_path / "found", {})
    tried = [row for row in found if row["distilled_kl"] is not None]
    ranks = [sorted(tried, key=lambda row: row[name]).index(tried[0]) for name in ("kl", "distilled_kl")]
    order = [sorted(range(len(tried)), key=lambda at: tried[at][name]) for name in ("kl", "distilled_kl")]
    print(f"order as cut {order[0]}, distilled {order[1]}; the chosen one is number {ranks[0] + 1} as cut")
    recovered = [1 - row["distilled_kl"] / row["kl"] for row in tried]
    print(f"50 steps win back {min(recovered):.0%} to {max(recovered):.0%}")
    assert ranks[1] == 0
    assert all(row["params"] <= 0.7 * parameters(stdlib_model) for row in found)
    assert min(recovered) > 0.3

    rival = Prune.model_validate({"target": {"params": 0.7}, "search": SEARCH}).rival
    assert rival is not None
    chance = _candidates(stdlib_model, tmp_path / "random", {"order": "random", "search": rival.search})
    assert found[0]["kl"] < chance[0]["kl"]
    for name in ("found", "random"):
        out = tmp_path / name / "out"
        held_out = compare(run_of(stdlib_model, out, tmp_path / f"{name}-measured", calibration=CALIBRATION), 64, 128)
        print(f"{name}: KL on held-out text {held_out[0]['result'].mean_kl:.4f}")
