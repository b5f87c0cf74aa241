"""The acceptance line of puzzle, on the shipped model and held-out text; it prints its figures."""

from pathlib import Path

import pytest
import torch
from fixtures.exporting import run_of

from optcore.evaluate.fidelity_stream import compare
from optcore.puzzle import DESCRIPTION, Structure
from optcore.references import Calibration
from optcore.techniques import Prune, Puzzle, Technique

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
CALIBRATION = Calibration(dataset="python-stdlib", samples=64, sequence_length=128)


def test_a_choice_for_each_layer_beats_one_for_all(stdlib_model: Path, tmp_path: Path) -> None:
    """64 windows of 128 tokens to calibrate, 32 of them to score, 64 held-out ones; KL in nats a token."""
    torch.set_num_threads(1)

    def kl(name: str, technique: Technique) -> float:
        run = run_of(stdlib_model, stdlib_model, tmp_path / name, calibration=CALIBRATION)
        technique.apply(run)
        measuring = run_of(stdlib_model, run.out, tmp_path / f"{name}-measured", calibration=CALIBRATION)
        divergence = compare(measuring, 64, 128)[0]["result"]
        print(f"{name:<24} KL {divergence.mean_kl:.5f}  top-1 {divergence.agreement:.2%}", end="  ")
        if isinstance(technique, Puzzle):
            found = run.results["puzzle"]
            assert isinstance(found, dict)
            structure = Structure.model_validate_json((run.out / DESCRIPTION).read_text())
            layers = " ".join(f"{'A' if one.attention else '-'}{one.ffn}" for one in structure.layers)
            print(f"{found['layers_after'] / found['layers_before']:.2%}, predicted {found['predicted']}: {layers}")
        else:
            print()
        return divergence.mean_kl

    found: dict[tuple[str, float], float] = {}
    for share in (0.75, 0.6):
        target = {"params": share}
        for name, settings in {
            "ilp kl": {},
            "ilp kl, quarters": {"ffn": [1, 0.75, 0.5, 0.25, 0]},
            "ilp local": {"score": "local"},
            "ilp kl, no refit": {"refit": False},
            "uniform": {"choice": "uniform"},
            "uniform, no refit": {"choice": "uniform", "refit": False},
        }.items():
            technique = Puzzle.model_validate({"target": target, **settings})
            found[name, share] = kl(f"{share:.0%} {name}", technique)
    for depth in (1, 2, 3):
        kl(f"{depth} of 6 layers dropped", Prune(depth=depth))
    assert all(found["ilp kl", share] <= found["uniform", share] for share in (0.75, 0.6))
