"""What training does to exits, and whether the risk holds on text that nobody has seen; it prints its figures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.training import training_run

from optcore.calibration.text import Texts
from optcore.evaluate.fidelity_stream import compare
from optcore.references import Calibration
from optcore.restructure.early_exit import THRESHOLDS
from optcore.restructure.exit_walk import said_at, walk
from optcore.restructure.risk_control import last_safe
from optcore.run import Run
from optcore.streaming.decoder import Decoder
from optcore.techniques import EarlyExit
from optcore.training.windows import Windows

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
TEXT = Calibration(dataset="python-stdlib", samples=64, sequence_length=128)
TECHNIQUE = EarlyExit.model_validate(
    {
        "steps": 200,
        "batch": 4,
        "gradient_checkpointing": False,
        "sequence_length": 128,
        "learning_rate": 5e-4,
        "rotation": 2,
        "validation": {"samples": 32, "every": 100},
        "samples": 160,
    }
)


def test_exits_learn_and_the_risk_holds(stdlib_model: Path, tmp_path: Path) -> None:
    """200 steps of 4 windows of 128 tokens; the risk on 128 held-out windows, up to three standard errors of them."""
    torch.set_num_threads(1)
    run = training_run(TECHNIQUE, stdlib_model, stdlib_model, tmp_path)
    TECHNIQUE.apply(run)
    noted: Any = run.results
    for moment in ("start", "best"):
        values = noted["training"][moment]
        shares = "  ".join(f"{depth}: {values[f'agreement_after_{depth}']:.1%}" for depth in range(1, 6))
        print(f"{moment:<5} agreement with the full depth after {shares}; KL to the source {values['kl']:.4f}")
    found = noted["early_exit"]
    print(f"draft by {found['draft']}; steps {noted['training']['steps']}, best {noted['training']['best_step']}")
    assert noted["training"]["best"]["agreement_after_4"] > noted["training"]["start"]["agreement_after_4"] + 0.05

    decoder, windows = Decoder(run.out), Windows(run.windows)
    unseen_ST = windows.read(range(windows.facts.windows - TECHNIQUE.samples, windows.facts.windows)).tokens_BT
    held_out_ST = Texts(stdlib_model, TEXT, ()).evaluation_windows(128, 128, 512)
    own_ST, full_ST = (said_at(run, decoder, tokens_ST)[-1] for tokens_ST in (unseen_ST, held_out_ST))
    exits = range(1, 6)
    for risk in (0.05, 0.1, 0.2):

        def losses(threshold: float) -> list[float]:
            return _differ(walk(run, decoder, unseen_ST, exits, threshold).likeliest_ST, own_ST).tolist()

        threshold = last_safe(THRESHOLDS, losses, risk, TECHNIQUE.delta)
        assert threshold is not None
        assert risk > TECHNIQUE.risk or threshold == found["threshold"]
        walked = walk(run, decoder, held_out_ST, exits, threshold)
        losses_S = _differ(walked.likeliest_ST, full_ST)
        mean, error = losses_S.mean().item(), (losses_S.std() / len(losses_S) ** 0.5).item()
        layers = walked.computed_ST.double().mean().item()
        print(
            f"risk {risk:.2f}: threshold {threshold}, held-out risk {mean:.4f} +- {error:.4f}, {layers:.3f} of 6 layers"
        )
        assert mean <= risk + 3 * error
        _beside_a_fixed_exit(run, threshold, tmp_path / f"{risk}")


def _beside_a_fixed_exit(run: Run, threshold: float, folder: Path) -> None:
    """KL in nats a token of the held-out text, to the source."""
    technique = EarlyExit(steps=0, threshold=threshold)
    ours = run_of(run.out, run.out, folder / "ours", calibration=TEXT)
    technique.apply(ours)
    theirs = run_of(run.out, ours.out, folder / "theirs", calibration=TEXT)
    assert technique.rival
    technique.rival.apply(theirs)
    for name, one in (("confidence", ours), ("fixed", theirs)):
        measuring = run_of(run.source, one.out, folder / f"{name}-measured", calibration=TEXT)
        measured, noted = compare(measuring, 64, 128)[0]["result"], one.results["early_exit"]
        layers = noted["mean_layers"]  # type: ignore[index]
        print(f"  {name:<10} {layers:.3f} layers, KL {measured.mean_kl:.4f}, top-1 {measured.agreement:.2%}")


def _differ(said_ST: torch.Tensor, full_ST: torch.Tensor) -> torch.Tensor:
    """Each window's share of tokens that are not what the full depth says [S]."""
    return (said_ST != full_ST).double().mean(1)
