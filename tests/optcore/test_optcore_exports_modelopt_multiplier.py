"""The magnitude that an NVFP4 divisor was made from, and the multipliers written from it."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.exporting import export, plain, run_of
from fixtures.tiny_models import MakeModel
from safetensors.torch import load_file, save_file

from optcore.export import Modelopt
from optcore.export.modelopt_multiplier import amax_of
from optcore.export.raw_reader import RawFiles
from optcore.quantization import load_quantization


def test_a_magnitude_of_float32_comes_back() -> None:
    """For a sixth of them the divisor alone leaves two, and what was measured tells which."""
    asked = 0
    for amax in np.random.default_rng(0).uniform(1, 2, 5000).astype(np.float32).tolist():

        def measure(amax: float = amax) -> Collection[float]:
            nonlocal asked
            asked += 1
            return (amax, amax * 3)

        assert amax_of(_divisor(2688, amax), measure) == amax
    assert 5000 / 8 < asked < 5000 / 4


@pytest.mark.parametrize("reach", [2688, 1536])
@pytest.mark.parametrize("exponent", [-30, -3, 0, 9])
def test_a_magnitude_of_bfloat16_needs_no_measurement(reach: int, exponent: int) -> None:
    """Nor does it where the search of scales left room above the largest block."""
    missed = 0
    for mantissa in range(128, 256):
        amax = mantissa * 2.0**exponent
        multiplier = np.float32(amax_of(_divisor(reach, amax), _never) / 2688)
        assert multiplier == np.float32(amax / reach)
        missed += multiplier != np.float32(1 / _divisor(reach, amax))
    assert missed > 10  # of 128, which the reciprocal gets wrong


def test_a_divisor_of_no_float32_gives_its_reciprocal() -> None:
    divisors = np.float32(1.2) + np.arange(200, dtype=np.float32) * np.float32(2.0**-23)
    of_none = [d for d in divisors.tolist() if _divisor(2688, float(np.float32(2688 / d))) != d]
    assert len(of_none) > 10  # here 11 quotients fall on 12 numbers
    for divisor in of_none:
        assert amax_of(divisor, _never) == 2688 / divisor


@pytest.mark.parametrize("measured", [(), (3.0,)])
def test_a_magnitude_that_does_not_fit_is_no_answer(measured: tuple[float, ...]) -> None:
    """A weight that smoothing was folded into is not the one on disk."""
    amax = next(a for a in _float32s() if _pair(a))
    assert amax_of(_divisor(2688, amax), lambda: measured) in (amax, _pair(amax))


def test_a_divisor_at_the_end_of_float32() -> None:
    largest = float(np.finfo(np.float32).max)
    assert amax_of(largest, tuple) == pytest.approx(2688 / largest)


def _divisor(reach: int, amax: float) -> float:
    return float(np.float32(reach / amax))


def _never() -> Collection[float]:
    raise AssertionError("no measurement is needed")


def _float32s() -> list[float]:
    found: list[float] = np.random.default_rng(1).uniform(1, 2, 100).astype(np.float32).tolist()
    return found


def _pair(amax: float) -> float | None:
    """The other float32 with the same divisor."""
    near = (float(np.nextafter(np.float32(amax), np.float32(end))) for end in (0, 9))
    return next((other for other in near if _divisor(2688, other) == _divisor(2688, amax)), None)


@pytest.fixture(scope="module")
def float32_model(tmp_path_factory: pytest.TempPathFactory, tiny_model: MakeModel) -> Path:
    """A model whose weights fill float32, one of them with an output of zeros."""
    folder = shutil.copytree(tiny_model("Llama"), tmp_path_factory.mktemp("float32") / "model")
    random = torch.Generator().manual_seed(1)
    tensors = {
        name: tensor.float() * (1 + torch.rand(tensor.shape, generator=random) / 512)
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    tensors["model.layers.1.mlp.up_proj.weight"][7] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, float32_model: Path) -> RawFiles:
    folder = tmp_path_factory.mktemp("nvfp4")
    plain("nvfp4").apply(run_of(float32_model, float32_model, folder / "checkpoint"))
    return export(Modelopt(), folder / "checkpoint", folder / "out", float32_model)


def test_multipliers_are_rounded_once(files: RawFiles, float32_model: Path) -> None:
    """Of weights by the group that runs as one matrix, and of inputs: amax / 2688 to the last bit."""
    amax = {n: float(t.abs().max()) for n, t in load_file(float32_model / "model.safetensors").items()}
    description = load_quantization(files.folder.with_name("checkpoint"))
    assert description
    for layer in range(2):
        for parent, group in (
            ("self_attn", ("q_proj", "k_proj", "v_proj")),
            ("self_attn", ("o_proj",)),
            ("mlp", ("gate_proj", "up_proj")),
            ("mlp", ("down_proj",)),
        ):
            names = [f"model.layers.{layer}.{parent}.{leaf}" for leaf in group]
            second = np.float32(max(amax[f"{name}.weight"] for name in names) / 2688)
            assert {files.floats(f"{name}.weight_scale_2").item() for name in names} == {second.item()}
            for name in names:
                measured = description.linears[name].input_amax
                assert measured
                assert files.floats(f"{name}.input_scale").item() == np.float32(measured / 2688)


def test_blocks_of_zeros_have_the_scale_one(files: RawFiles) -> None:
    scale_NG = files.floats("model.layers.1.mlp.up_proj.weight_scale")
    assert (scale_NG[7] == 1).all()
    assert not files.bits("model.layers.1.mlp.up_proj.weight")[7].any()
    assert (np.delete(scale_NG, 7, 0) != 1).all()
