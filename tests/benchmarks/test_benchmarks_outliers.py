"""The variant with outliers is the same function."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.outliers import FACTORS, OWN_channels, SHARED_channels, write_outliers

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "stdlib-5m"


@pytest.fixture(scope="module")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outliers")
    write_outliers(MODEL, folder)
    return folder


@torch.no_grad()
def test_logits_are_equal_bit_for_bit(outliers: Path) -> None:
    tokens_BT = torch.randint(0, 2048, (2, 32), generator=torch.Generator().manual_seed(0))
    source, variant = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(tokens_BT).logits
        for folder in (MODEL, outliers)
    )
    assert torch.equal(source, variant)


def test_each_norm_inside_a_layer_has_six_loud_channels(outliers: Path) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (MODEL, outliers))
    norms = [name for name in before if "layernorm" in name]
    for name in norms:
        factors = (after[name].float() / before[name].float()).tolist()
        loud = [factor for factor in factors if factor != 1]
        assert len(loud) == SHARED_channels + OWN_channels
        assert set(loud) == set(FACTORS)
    assert len(norms) == 12
    assert torch.equal(before["model.norm.weight"], after["model.norm.weight"])
