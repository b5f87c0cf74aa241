"""Expert pruning by REAP beside experts at random, on the shipped model made a mixture; it prints its figures."""

from pathlib import Path

import pytest
import torch
from fixtures.exporting import run_of

from optcore.evaluate.fidelity_stream import compare
from optcore.references import Calibration
from optcore.techniques import Prune, Upcycle

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
CALIBRATION = Calibration(dataset="python-stdlib", samples=64, sequence_length=128)


def test_reap_beside_random(stdlib_model: Path, tmp_path: Path) -> None:
    """64 windows of 128 tokens; KL in nats a token to the mixture that is pruned.

    The mixture was never trained: its experts differ by noise alone, so the figures say what the method does to such a
    model and little about real ones. Beating three draws at both sizes is the gate.
    """
    torch.set_num_threads(1)
    upcycled = run_of(stdlib_model, stdlib_model, tmp_path / "mixture", calibration=CALIBRATION)
    Upcycle(experts=8, top_k=2, jitter=0.5).apply(upcycled)
    print(f"upcycled      KL to the dense model {kl(stdlib_model, upcycled.out, tmp_path / 'first'):.5f}")
    whole = pruned(upcycled.out, 8, "influence", 0, tmp_path)
    assert whole == pytest.approx(0, abs=1e-9)
    for left in (6, 4):
        reap = pruned(upcycled.out, left, "influence", 0, tmp_path)
        random = [pruned(upcycled.out, left, "random", seed, tmp_path) for seed in range(3)]
        assert reap < min(random)


def pruned(mixture: Path, left: int, order: str, seed: int, folder: Path) -> float:
    """KL of the mixture with so many experts left."""
    name = f"{left}-{order}-{seed}"
    run = run_of(mixture, mixture, folder / name, calibration=CALIBRATION)
    run.seed = seed
    Prune.model_validate({"experts": {"size": left}, "order": order}).apply(run)
    found = kl(mixture, run.out, folder / f"measured-{name}")
    print(f"{left} of 8 left  {order:<9} seed {seed}  KL {found:.5f}")
    return found


def kl(source: Path, checkpoint: Path, folder: Path) -> float:
    """Of the checkpoint to the source, in nats a token."""
    measuring = run_of(source, checkpoint, folder, calibration=CALIBRATION)
    return float(compare(measuring, 64, 128)[0]["result"].mean_kl)
