"""Scales and packed bytes, against compressed-tensors' own arithmetic fed with float32."""

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

from optcore.algorithms.scales import Scales, blocks, fake_quantize, find_scales
from optcore.export.compressed_tensors_config import _arguments, quantization_config
from optcore.export.compressed_tensors_writer import pack
from optcore.quantization import Quantization
from optcore.schemes import PRESETS, Scheme

ALL = pytest.mark.parametrize("scheme", PRESETS.values(), ids=lambda scheme: scheme.name)


@pytest.fixture
def weight_NK() -> torch.Tensor:
    """Heavy-tailed, as trained weights are; one row of zeros."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(96, 256, generator=generator) ** 3 * 0.02
    weight[5] = 0
    return weight


@ALL
def test_bytes_equal_compressed_tensors(scheme: Scheme, weight_NK: torch.Tensor) -> None:
    """Max calibration: scale, codes and packing are the library's own, byte for byte."""
    description = Quantization(scheme=scheme.name, scale_search="max", kv_cache=None, modules=(), ignored=())
    layout = quantization_config(description)["format"]
    oracle = BaseCompressor.get_value_from_registry(layout)
    args = QuantizationArgs(**_arguments(scheme.weights, activation=False))
    state = {"weight": weight_NK, **_library_scales(weight_NK, args, scheme)}
    expected = oracle.compress(state, QuantizationScheme(targets=["Linear"], weights=args))
    found = find_scales([weight_NK], scheme.weights, "max", torch.float32)[0]
    ours = pack(weight_NK, found, scheme.weights)
    assert set(ours) == set(expected)
    for name, tensor in ours.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(_bytes(tensor), _bytes(expected[name])), name


@ALL
def test_search_never_loses_to_max(scheme: Scheme, weight_NK: torch.Tensor) -> None:
    plain, searched = (
        blocks(weight_NK - fake_quantize(weight_NK, scales, scheme.weights), scheme.weights).square().sum(-1)
        for scales in (find_scales([weight_NK], scheme.weights, m, torch.bfloat16)[0] for m in ("max", "mse"))
    )
    assert searched.sum() < plain.sum()
    if scheme.weights.strategy != "tensor_group":  # NVFP4's second level differs between the two
        assert (searched <= plain).all()


@pytest.mark.parametrize("method", ["max", "mse"])
@pytest.mark.parametrize("name", ["fp8", "nvfp4"])
def test_fused_weights_share_what_is_one_number_per_tensor(name: str, method: str, weight_NK: torch.Tensor) -> None:
    group = [weight_NK, weight_NK[:32] * 7, weight_NK[32:64] * 0.1]
    found = find_scales(group, PRESETS[name].weights, method, torch.bfloat16)  # type: ignore[arg-type]
    shared = [scales.scale if name == "fp8" else scales.global_scale for scales in found]
    assert all(torch.equal(scale, shared[0]) for scale in shared)
    alone = find_scales(group[:1], PRESETS[name].weights, method, torch.bfloat16)[0]  # type: ignore[arg-type]
    assert not torch.equal(alone.scale if name == "fp8" else alone.global_scale, shared[0])


@ALL
@pytest.mark.parametrize("method", ["max", "mse"])
def test_zeros_stay_zeros(scheme: Scheme, method: str) -> None:
    zeros = torch.zeros(4, 256)
    scales = find_scales([zeros], scheme.weights, method, torch.bfloat16)[0]  # type: ignore[arg-type]
    assert torch.equal(fake_quantize(zeros, scales, scheme.weights), zeros)
    assert (scales.step() > 0).all()


@ALL
def test_scaling_the_weight_scales_the_result(scheme: Scheme, weight_NK: torch.Tensor) -> None:
    """A power of two moves no code: the grid is relative."""
    one, four = (
        fake_quantize(w, find_scales([w], scheme.weights, "mse", torch.bfloat16)[0], scheme.weights)
        for w in (weight_NK, weight_NK * 4)
    )
    torch.testing.assert_close(one * 4, four, rtol=0, atol=0)


def _library_scales(weight_NK: torch.Tensor, args: QuantizationArgs, scheme: Scheme) -> dict[str, torch.Tensor]:
    values = blocks(weight_NK, scheme.weights)
    low, high = values.amin(-1), values.amax(-1)
    if scheme.weights.strategy != "tensor_group":
        scale, _ = calculate_qparams(low, high, args)
        return {"weight_scale": scale.reshape(1) if scheme.weights.strategy == "tensor" else scale}
    divisor = generate_gparam(low.amin(), high.amax())
    scale, _ = calculate_qparams(low, high, args, global_scale=divisor)
    return {"weight_scale": scale, "weight_global_scale": divisor}


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def test_step_is_scale_over_divisor() -> None:
    scales = Scales(torch.tensor([[2.0]]).to(torch.float8_e4m3fn), torch.tensor([4.0]))
    assert scales.step().item() == 0.5


@ALL
def test_parts_of_a_large_weight_change_nothing(
    scheme: Scheme, weight_NK: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = find_scales([weight_NK], scheme.weights, "mse", torch.bfloat16)[0]
    monkeypatch.setattr("optcore.algorithms.scales._PART_values", 1000)
    in_parts = find_scales([weight_NK], scheme.weights, "mse", torch.bfloat16)[0]
    assert torch.equal(_bytes(whole.scale), _bytes(in_parts.scale))
