"""What low rank costs on the shipped model, plain and whitened, each printing its figures.

KL in nats a token to the source, on 64 held-out windows of 128 tokens.
"""

from pathlib import Path

import pytest
import torch
from fixtures.exporting import run_of

from optcore.evaluate.fidelity_stream import compare
from optcore.references import Calibration
from optcore.techniques import LowRank

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
TEXT = Calibration(dataset="python-stdlib", samples=64, sequence_length=256)
EVALUATED = Calibration(dataset="python-stdlib", samples=2, sequence_length=128)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("keep", [0.8, 0.6])
def test_c3_whitened_loses_less_than_plain(keep: float, allocation: str, stdlib_model: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    kl = {}
    for method in ("svd", "whitened"):
        run = run_of(stdlib_model, stdlib_model, tmp_path / method, calibration=TEXT)
        LowRank.model_validate({"method": method, "keep": keep, "allocation": allocation}).apply(run)
        found, _ = compare(run_of(stdlib_model, run.out, tmp_path / f"{method}-kl", calibration=EVALUATED), 64, 128)
        kl[method] = found["result"].mean_kl
        facts = run.results["low_rank"]
        kept, whole = facts["kept"], len(facts["whole"])  # type: ignore[index]
        print(f"{method} SVD, keep {keep}, {allocation}: KL {kl[method]:.4f}, kept {kept:.3f}, {whole} layers whole")
    assert kl["whitened"] <= 0.7 * kl["svd"]
