"""What sharing storage costs and saves, on the shipped model and held-out text; it prints its figures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of

from optcore.compact import load_compact
from optcore.evaluate.fidelity_stream import compare
from optcore.export import Compact
from optcore.references import Calibration
from optcore.techniques import HashShare, Palettize
from optcore.techniques.base import Technique

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
CALIBRATION = Calibration(dataset="python-stdlib", samples=64, sequence_length=128)
HOW: tuple[dict[str, Any], ...] = ({}, {"sensitivity": "none"}, {"method": "uniform"}, {"group": 32})


def test_e1_values_by_divergence_and_bytes(stdlib_model: Path, tmp_path: Path) -> None:
    """64 windows of 128 tokens; KL in nats a token to the dense model, bytes of the compact file's data."""
    found = {}
    for bits in (4, 3, 2):
        for number, settings in enumerate(HOW):
            technique = Palettize.model_validate({"bits": bits, **settings})
            found[bits, number] = measured(technique, stdlib_model, tmp_path / f"{bits}-{number}")
        assert found[bits, 0] < found[bits, 2]


def test_e2_hashed_embeddings(stdlib_model: Path, tmp_path: Path) -> None:
    """The same for the embeddings alone, by hash and by how rows are weighted."""
    for number, settings in enumerate(({}, {"weighting": "none"}, {"method": "modulo"}, {"ratio": 0.9})):
        assert measured(HashShare.model_validate(settings), stdlib_model, tmp_path / str(number)) > 0


def measured(technique: Technique, model: Path, folder: Path) -> float:
    """KL of what a technique makes, printed with its size."""
    torch.set_num_threads(1)
    run = run_of(model, model, folder / "dense", calibration=CALIBRATION)
    technique.apply(run)
    Compact().write(run_of(model, run.out, folder / "compact", calibration=CALIBRATION))
    size = load_compact(folder / "compact")
    divergence = compare(run_of(model, run.out, folder / "measured", calibration=CALIBRATION), 64, 128)[0]["result"]
    print(
        f"{technique.summary}: KL {divergence.mean_kl:.4f}, top-1 {divergence.agreement:.2%}, "
        f"{size.data_bytes} bytes, {size.bits_per_weight:.3f} bits a weight"
    )
    return divergence.mean_kl
