"""Bytes against golden words and compressed-tensors' own packing."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from optcore.algorithms.codes import encode
from optcore.algorithms.packing import pack, pack_int32, unpack, unpack_int32
from optcore.algorithms.scales import Scales, find_scales
from optcore.schemes import GGML_FORMATS, PRESETS, Scheme, scale_shape

ALL = pytest.mark.parametrize("scheme", PRESETS.values(), ids=lambda scheme: scheme.name)


@pytest.mark.parametrize(
    ("codes", "bits", "words"),
    [
        ([-8, -7, -1, 0, 1, 2, 6, 7], 4, [0xFEA98710]),
        ([-128, -1, 0, 127], 8, [0xFF807F00]),
        ([*range(-4, 4)] * 4, 3, [0x88FAC688, 0xC688FAC6, 0xFAC688FA]),
        ([7] * 9, 4, [0xFFFFFFFF, 0x0000000F]),
    ],
)
def test_integer_golden_words(codes: list[int], bits: int, words: list[int]) -> None:
    packed = pack_int32(torch.tensor([codes]), bits)
    assert packed.view(torch.uint32).tolist() == [words]
    assert unpack_int32(packed, bits, len(codes)).tolist() == [codes]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(1, 5), st.integers(1, 130), st.integers(0, 2**31))
def test_words_are_compressed_tensors_own(bits: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), generator=generator).to(torch.int8)
    packed = pack_int32(codes, bits)
    assert torch.equal(packed, pack_to_int32(codes, bits))
    assert torch.equal(unpack_int32(packed, bits, columns), codes)


@ALL
@pytest.mark.parametrize("shape", [(8, 256), (200, 768), (33, 512)])
def test_unpacking_is_the_inverse(scheme: Scheme, shape: tuple[int, int]) -> None:
    weight_NK = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    scales = find_scales([weight_NK], scheme.weights, "max", torch.bfloat16)[0]
    codes = encode(weight_NK, scales, scheme.weights)
    again, scales_again = unpack(pack(codes, scales, scheme.weights), scheme.weights)
    assert _same(codes, again)
    assert all(_same(a, b) for a, b in zip(scales, scales_again, strict=True))


@ALL
def test_bits_per_weight_are_those_of_the_files(scheme: Scheme) -> None:
    """Counted on the tensors; the shape that packed integers carry along is a constant. ggml's blocks are packed
    closer in GGUF files than between stages, and counted as there."""
    weight_NK = torch.randn(256, 512, generator=torch.Generator().manual_seed(2))
    scales = find_scales([weight_NK], scheme.weights, "max", torch.bfloat16)[0]
    tensors = pack(encode(weight_NK, scales, scheme.weights), scales, scheme.weights)
    if scheme.name in GGML_FORMATS:
        values, size = GGML_QUANT_SIZES[GGMLQuantizationType[scheme.name.upper()]]
        assert scheme.bits_per_weight((256, 512)) == 8 * size / values
        return
    stored = sum(8 * tensor.nbytes for suffix, tensor in tensors.items() if suffix != "weight_shape")
    assert scheme.bits_per_weight((256, 512)) == pytest.approx(stored / weight_NK.numel(), abs=1e-9)
    assert scales.scale.shape == scale_shape(scheme.weights, (256, 512))


def test_bits_of_the_usual_formats() -> None:
    bits = {name: PRESETS[name].bits_per_weight((4096, 4096)) for name in ("int4", "nvfp4", "mxfp4", "nf4", "fp8")}
    assert bits == pytest.approx({"int4": 4.125, "nvfp4": 4.5, "mxfp4": 4.25, "nf4": 4.127, "fp8": 8}, abs=1e-3)


def test_zero_points_are_packed_along_outputs() -> None:
    """As compressed-tensors does: 4 bits of 8 outputs a word."""
    args = PRESETS["int4_asym"].weights
    zeros = torch.arange(-8, 8, dtype=torch.int8)[:, None].expand(16, 2)
    scales = Scales(torch.ones(16, 2), zero_point=zeros)
    packed = pack(torch.zeros(16, 256, dtype=torch.int8), scales, args)
    assert torch.equal(packed["weight_zero_point"], pack_to_int32(zeros, 4, packed_dim=0))
    assert packed["weight_zero_point"].shape == (2, 2)


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
