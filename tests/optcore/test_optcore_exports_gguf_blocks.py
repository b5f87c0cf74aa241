"""Blocks of ggml: golden bytes, the bytes of gguf's own encoders, and what gguf's decoders make of ours."""

from typing import NamedTuple

import gguf
import numpy as np
import pytest
import torch

from optcore.algorithms.codes import decode
from optcore.algorithms.scales import Scales
from optcore.errors import RecipeError
from optcore.export.raw_reader import Array
from optcore.gguf.blocks import TYPES, encode_blocks, rounding, second_scale
from optcore.schemes import GGML_FORMATS, PRESETS

N, K = 6, 512
KVALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""The codebook of IQ4, from ggml-common.h."""
REACHES = {
    "q2_k": (0, 15),
    "q3_k": (-32, 31),
    "q4_k": (0, 63),
    "q5_k": (0, 63),
    "q6_k": (-128, 127),
    "iq4_xs": (-32, 31),
}


class Case(NamedTuple):
    codes_NK: torch.Tensor
    scales: Scales
    weight_NK: Array
    """In float32, by ggml's formulas in ggml's order."""


def _half(shape: tuple[int, int]) -> torch.Tensor:
    return (torch.rand(shape) * 0.01 - 0.002).half()


def _spread(values: torch.Tensor) -> Array:
    floats: Array = values.float().numpy()
    return np.repeat(floats, K // floats.shape[1], axis=1)


def random_case(name: str) -> Case:
    """Codes and scales over the whole range of a ggml format."""
    torch.manual_seed(len(name) + ord(name[1]))
    args = PRESETS[name].weights
    assert args.group_size
    low, high = (-(2 ** (args.bits - 1)), 2 ** (args.bits - 1) - 1) if args.type == "int" else (0, 2**args.bits - 1)
    codes = torch.randint(low, high + 1, (N, K), dtype=torch.int8 if args.type == "int" else torch.uint8)
    values = KVALUES[codes.numpy()] if args.type == "iq" else codes.float().numpy()
    groups = (N, K // args.group_size)
    if args.scale_type == "f16":
        scales = Scales(_half(groups), minimum=None if args.symmetric else _half(groups))
        weight = values * _spread(scales.scale)
        return Case(codes, scales, weight if scales.minimum is None else weight + _spread(scales.minimum))
    first, last = REACHES[name]
    dtype = torch.uint8 if first == 0 else torch.int8
    step = torch.randint(first, last + 1, groups, dtype=dtype)
    scales = Scales(step, super_scale=_half((N, K // 256)))
    weight = (_spread(scales.super_scale) * _spread(step)) * values  # type: ignore[arg-type]
    if args.symmetric:
        return Case(codes, scales, weight)
    minimum = torch.randint(first, last + 1, groups, dtype=dtype)
    scales = scales._replace(minimum=minimum, super_minimum=_half((N, K // 256)))
    return Case(codes, scales, weight - _spread(scales.super_minimum) * _spread(minimum))  # type: ignore[arg-type]


def decoded(name: str, blocks: Array) -> Array:
    values: Array = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[TYPES[name]])
    return values


@pytest.mark.parametrize("name", sorted(GGML_FORMATS))
def test_blocks_decode_to_the_bits_of_the_formula(name: str) -> None:
    case = random_case(name)
    blocks = encode_blocks(name, case.codes_NK, case.scales)
    elements, octets = gguf.constants.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[TYPES[name]]]
    assert blocks.shape == (N, K // elements * octets)
    np.testing.assert_array_equal(decoded(name, blocks), case.weight_NK)
    assert rounding(name, case.scales) is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("q4_0", "0040809191a2a2b3b3c4c4d5d5e6e6f7f7f8"),
        ("q8_0", "083081899199a1a9b1b9c0c8d0d8e0e8f0f800081018202830384047" + "4f575f676f77"),
    ],
)
def test_golden_blocks(name: str, expected: str) -> None:
    """Of the values -16..15, as gguf 0.19 printed them; codes are read off ggml's rules d = -16/-8 and 16/127."""
    values = np.arange(-16, 16, dtype=np.float32)
    step = np.float32(2.0) if name == "q4_0" else np.float32(16 / 127)
    offset = 8.5 if name == "q4_0" else 0.0
    exact = values / step
    codes = (
        np.clip(np.trunc(exact + offset), 0, 15) - 8 if name == "q4_0" else np.sign(exact) * np.floor(abs(exact) + 0.5)
    )
    scales = Scales(torch.tensor([[step]]).half())
    assert encode_blocks(name, torch.from_numpy(codes.astype(np.int8))[None], scales).tobytes().hex() == expected


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_bytes_are_those_of_gguf_where_codes_are(name: str) -> None:
    """gguf encodes; its bytes are taken apart by the offsets of the layout, and ours of these parts are the same."""
    torch.manual_seed(3)
    theirs = gguf.quants.quantize(torch.randn(N, K).numpy(), gguf.GGMLQuantizationType[TYPES[name]])
    elements, octets = gguf.constants.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[TYPES[name]]]
    parts = theirs.reshape(-1, octets)
    scale = torch.from_numpy(parts[:, :2].copy().view(np.float16).reshape(N, -1))
    has_minimum = name.endswith("1")
    minimum = torch.from_numpy(parts[:, 2:4].copy().view(np.float16).reshape(N, -1)) if has_minimum else None
    values = decoded(name, theirs).reshape(-1, elements).astype(np.float64)
    base = parts[:, 2:4].copy().view(np.float16).astype(np.float64) if has_minimum else 0.0
    codes = np.round((values - base) / parts[:, :2].copy().view(np.float16).astype(np.float64)).reshape(N, K)
    codes_NK = torch.from_numpy(codes.astype(np.uint8 if has_minimum else np.int8))
    assert encode_blocks(name, codes_NK, Scales(scale, minimum=minimum)).tobytes() == theirs.tobytes()


@pytest.mark.parametrize("name", ["int4", "int4_g64", "int4_g32", "int8_w8a16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_integers_in_wide_groups_repeat_their_scale(name: str, dtype: torch.dtype) -> None:
    """bfloat16 scales decode exactly; float32 ones within what rounding them to float16 did, and not exactly."""
    torch.manual_seed(5)
    args = PRESETS[name].weights
    half = 2 ** (args.bits - 1)
    codes = torch.randint(-half, half, (N, K), dtype=torch.int8)
    scales = Scales((torch.rand(N, K // (args.group_size or K)) * 0.02 + 0.001).to(dtype))
    ours, simulated = decoded(name, encode_blocks(name, codes, scales)), decode(codes, scales, args).numpy()
    allowed = rounding(name, scales)
    if dtype == torch.bfloat16:
        assert allowed is None
        np.testing.assert_array_equal(ours, simulated)
    else:
        assert allowed is not None
        assert (ours != simulated).any()
        assert (np.abs(ours.astype(np.float64) - simulated) <= _spread(torch.from_numpy(allowed)) * (1 + 1e-6)).all()
        assert allowed.max() <= half * 2 * 0.021 * 2**-11


@pytest.mark.parametrize("name", ["int4_asym", "int4_asym_g64", "int4_asym_g32"])
def test_zero_points_become_minimums(name: str) -> None:
    torch.manual_seed(6)
    args = PRESETS[name].weights
    assert args.group_size
    codes = torch.randint(-8, 8, (N, K), dtype=torch.int8)
    scale = (torch.rand(N, K // args.group_size) * 0.02 + 0.001).bfloat16()
    scales = Scales(scale, zero_point=torch.randint(-8, 8, scale.shape, dtype=torch.int8))
    ours, simulated = decoded(name, encode_blocks(name, codes, scales)), decode(codes, scales, args).numpy()
    allowed = rounding(name, scales)
    assert allowed is not None
    difference = np.abs(ours.astype(np.float64) - simulated)
    assert difference.any()
    assert (difference <= np.repeat(allowed, args.group_size, axis=1) + np.abs(simulated) * 2.0**-22).all()
    assert allowed.max() <= 15 * 0.021 * 2**-11  # half of float16's last place, of the largest minimum

    powers = scales._replace(scale=torch.exp2(torch.randint(-9, -5, scale.shape)).bfloat16())
    assert rounding(name, powers) is None
    exact = decoded(name, encode_blocks(name, codes, powers))
    np.testing.assert_array_equal(exact, decode(codes, powers, args).numpy())


def test_fp4_with_powers_of_two() -> None:
    torch.manual_seed(7)
    codes = torch.randint(0, 16, (N, K), dtype=torch.uint8)
    scales = Scales(torch.randint(0, 250, (N, K // 32), dtype=torch.uint8))
    ours = decoded("mxfp4_w4a16", encode_blocks("mxfp4_w4a16", codes, scales))
    np.testing.assert_array_equal(ours, decode(codes, scales, PRESETS["mxfp4_w4a16"].weights).numpy())


def test_fp4_with_two_levels_of_scales() -> None:
    torch.manual_seed(8)
    codes = torch.randint(0, 16, (N, K), dtype=torch.uint8)
    scales = Scales((torch.rand(N, K // 16) * 448).to(torch.float8_e4m3fn), torch.tensor([2713.7]))
    ours = decoded("nvfp4_w4a16", encode_blocks("nvfp4_w4a16", codes, scales))
    simulated = decode(codes, scales, PRESETS["nvfp4_w4a16"].weights).numpy()
    np.testing.assert_allclose(ours * np.float32(second_scale(scales)), simulated, rtol=2.0**-22, atol=0)


def test_a_scale_beyond_float16_is_refused() -> None:
    scales = Scales(torch.full((1, 1), 1e5))
    with pytest.raises(RecipeError, match="65504"):
        encode_blocks("int4_g32", torch.zeros(1, 32, dtype=torch.int8), scales)
