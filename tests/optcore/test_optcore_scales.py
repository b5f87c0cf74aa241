"""Scales and whole weights, against compressed-tensors' arithmetic fed with float32, brute force and hostile values."""

from itertools import product

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from fixtures.library_args import library_args
from hypothesis import given, settings
from hypothesis import strategies as st

from optcore.algorithms.blocks import blocks, importance_blocks, spread
from optcore.algorithms.codes import decode, encode, fake_quantize
from optcore.algorithms.lattice import lattice
from optcore.algorithms.packing import pack
from optcore.algorithms.scale_search import Method
from optcore.algorithms.scales import Scales, find_scales
from optcore.schemes import GGML_FORMATS, PRESETS, SUPER_BLOCK, QuantArgs, Scheme

ALL = pytest.mark.parametrize("scheme", PRESETS.values(), ids=lambda scheme: scheme.name)
KNOWN = [scheme for scheme in PRESETS.values() if scheme.weights.type != "nf" and scheme.name not in GGML_FORMATS]
METHODS: tuple[Method, ...] = ("max", "percentile", "mse", "hessian")
SHAPE = (200, 256)  # 200 does not fill two blocks of 128


@pytest.fixture
def weight_NK() -> torch.Tensor:
    """Heavy-tailed, as trained weights are; a row of zeros and a row of one value."""
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)) ** 3 * 0.02
    weight[5], weight[6] = 0, 0.03
    return weight


@pytest.fixture
def importance_K() -> torch.Tensor:
    """Mean squares of inputs, some of them a hundred times others."""
    return torch.rand(SHAPE[1], generator=torch.Generator().manual_seed(4)) ** 4 * 100


@pytest.mark.parametrize("scheme", KNOWN, ids=lambda scheme: scheme.name)
def test_bytes_equal_compressed_tensors(scheme: Scheme, weight_NK: torch.Tensor) -> None:
    """Max calibration: scale, zero point, codes and packing are the library's own, byte for byte."""
    args = library_args(scheme.weights)
    oracle = BaseCompressor.get_value_from_registry(_layout(scheme.weights))
    state = {"weight": weight_NK, **_library_scales(weight_NK, args, scheme)}
    expected = oracle.compress(state, QuantizationScheme(targets=["Linear"], weights=args))
    found = find_scales([weight_NK], scheme.weights, "max", torch.float32)[0]
    ours = pack(encode(weight_NK, found, scheme.weights), found, scheme.weights)
    assert set(ours) == set(expected)
    for name, tensor in ours.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(_bytes(tensor), _bytes(expected[name])), name


@pytest.mark.parametrize("scheme", KNOWN, ids=lambda scheme: scheme.name)
def test_compressed_tensors_decodes_our_searched_scales(scheme: Scheme, weight_NK: torch.Tensor) -> None:
    """Negative scales, exponents and zero points mean to it what they mean to us; it computes in the scales' type."""
    found = find_scales([weight_NK], scheme.weights, "mse", torch.float32)[0]
    codes = encode(weight_NK, found, scheme.weights)
    oracle = BaseCompressor.get_value_from_registry(_layout(scheme.weights))
    args = library_args(scheme.weights)
    tensors = pack(codes, found, scheme.weights)
    if scheme.weights.scale_type == "e4m3":
        tensors["weight_scale"] = tensors["weight_scale"].float()
    read = oracle.decompress(tensors, QuantizationScheme(targets=["Linear"], weights=args))["weight"]
    ours = decode(codes, found, scheme.weights)
    tolerance = 2**-7 if read.dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(read.float(), ours, rtol=tolerance, atol=1e-7)


@ALL
@pytest.mark.parametrize("method", METHODS)
def test_encoding_decoding_and_the_lattice_agree(
    scheme: Scheme, method: Method, weight_NK: torch.Tensor, importance_K: torch.Tensor
) -> None:
    """Bit for bit, also for a permutation of the inputs; and what was decoded is its own nearest point."""
    scales = find_scales([weight_NK], scheme.weights, method, torch.bfloat16, importance_K)[0]
    decoded = decode(encode(weight_NK, scales, scheme.weights), scales, scheme.weights)
    points = lattice(scales, scheme.weights, SHAPE)
    assert _same_bits(points.nearest(weight_NK), decoded)
    assert torch.equal(points.nearest(decoded), decoded)
    order = torch.randperm(SHAPE[1], generator=torch.Generator().manual_seed(5))
    assert _same_bits(points.columns(order).nearest(weight_NK[:, order]), decoded[:, order])
    assert _same_bits(points.columns(slice(16, 40)).nearest(weight_NK[:, 16:40]), decoded[:, 16:40])
    assert torch.equal(fake_quantize(weight_NK, scales, scheme.weights), decoded)


@pytest.mark.parametrize("name", ["fp8", "fp8_dynamic"])
def test_one_step_a_row_or_tensor_is_a_view(name: str) -> None:
    points = lattice(Scales(torch.ones(1 if name == "fp8" else SHAPE[0])), PRESETS[name].weights, SHAPE)
    for one in (points, points.columns(torch.arange(7, 30)), points.columns(torch.arange(SHAPE[1]) > 3)):
        assert one.step_NK.untyped_storage().nbytes() <= 4 * SHAPE[0]
        assert one.step_NK.shape[0] == SHAPE[0]


@ALL
@pytest.mark.parametrize("method", ["mse", "hessian"])
def test_search_never_loses_to_max(
    scheme: Scheme, method: Method, weight_NK: torch.Tensor, importance_K: torch.Tensor
) -> None:
    """By its own objective: for every scale, and in sum where a second level couples them."""
    importance = importance_blocks(importance_K, scheme.weights) if method == "hessian" else 1.0
    plain, searched = (
        (blocks(weight_NK - fake_quantize(weight_NK, scales, scheme.weights), scheme.weights).square() * importance)
        for scales in (
            find_scales([weight_NK], scheme.weights, m, torch.bfloat16, importance_K)[0] for m in ("max", method)
        )
    )
    assert searched.sum() <= plain.sum() * (1 + 1e-6)
    if scheme.name not in ("mxfp8", "nf4"):  # eight bits in narrow blocks: the rule is already the best exponent
        assert searched.sum() < plain.sum()
    if scheme.weights.scale_type == "super":
        plain, searched = (errors.flatten(1).unflatten(1, (-1, 256)) for errors in (plain, searched))
    if scheme.weights.strategy not in ("tensor", "tensor_group"):
        assert (searched.sum(-1) <= plain.sum(-1) * (1 + 1e-5) + 1e-12).all()


@pytest.mark.parametrize("name", ["int4_g32", "int3_g32", "nvfp4", "mxfp4"])
def test_the_bounded_search_is_close_to_brute_force(name: str) -> None:
    """Every scale on a fine line, both signs, against the few candidates."""
    args = PRESETS[name].weights
    values = torch.randn(8, 32, generator=torch.Generator().manual_seed(6))
    searched = (fake_quantize(values, find_scales([values], args, "mse", torch.float32)[0], args) - values).square()
    lines = (sign * values.abs().amax() * factor for sign, factor in product((-1, 1), torch.arange(0.01, 0.4, 2e-4)))
    if args.scale_type == "e8m0":
        lines = (torch.tensor(2.0) ** exponent for exponent in range(-8, 4))
    plain = args.model_copy(update={"scale_type": "stored", "strategy": "group"})
    size = args.group_size or 32
    errors = []
    for step in lines:
        scales = Scales(step.expand(8, 32 // size))
        per_group = plain.model_copy(update={"group_size": size})
        errors.append((fake_quantize(values, scales, per_group) - values).square().unflatten(1, (-1, size)).sum(-1))
    best = torch.stack(errors).amin(0)
    assert searched.sum() < best.sum() * (1.13 if args.scale_type == "e4m3" else 1.05)


def test_importance_moves_the_scale() -> None:
    """With all weight on the small values the large one is clipped; with all on the large one it is kept."""
    args = PRESETS["int4"].weights
    weight = torch.full((1, 128), 0.1)
    weight[0, 0] = 1.0
    small, large = torch.ones(128), torch.full((128,), 1e-6)
    small[0], large[0] = 1e-6, 1.0
    kept = fake_quantize(weight, find_scales([weight], args, "hessian", torch.float32, large)[0], args)
    fine = fake_quantize(weight, find_scales([weight], args, "hessian", torch.float32, small)[0], args)
    assert abs(kept[0, 0] - 1) < 0.01
    assert (fine[0, 1:] - 0.1).abs().max() < (kept[0, 1:] - 0.1).abs().max()
    assert fine[0, 0] < 0.9


def test_signed_scales_reach_the_lowest_code() -> None:
    weight = torch.linspace(-0.2, 0.8, 128)[None]
    scales = find_scales([weight], PRESETS["int4"].weights, "mse", torch.float32)[0]
    assert scales.scale.item() < 0
    assert encode(weight, scales, PRESETS["int4"].weights).min() == -8


def test_hessian_needs_importance_and_falls_back_without_tokens(weight_NK: torch.Tensor) -> None:
    args = PRESETS["int4"].weights
    with pytest.raises(ValueError, match="needs the importance"):
        find_scales([weight_NK], args, "hessian", torch.bfloat16)
    unseen = find_scales([weight_NK], args, "hessian", torch.bfloat16, torch.zeros(SHAPE[1]))[0]
    assert torch.equal(unseen.scale, find_scales([weight_NK], args, "mse", torch.bfloat16)[0].scale)


def test_percentile_gives_up_one_value_in_ten_thousand() -> None:
    weight = torch.arange(1, 100_001.0).view(10, -1)
    weight[0, 0] = 1e9
    scales = find_scales([weight], PRESETS["fp8"].weights, "percentile", torch.float32)[0]
    assert scales.scale.item() * 448 == pytest.approx(99_991, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["fp8", "nvfp4"])
def test_fused_weights_share_what_is_one_number_per_tensor(
    name: str, method: Method, weight_NK: torch.Tensor, importance_K: torch.Tensor
) -> None:
    args = PRESETS[name].weights
    group = [weight_NK, weight_NK[:32] * 7, weight_NK[32:64] * 0.1]
    found = find_scales(group, args, method, torch.bfloat16, importance_K)
    shared = [scales.scale if name == "fp8" else scales.global_scale for scales in found]
    assert all(torch.equal(scale, shared[0]) for scale in shared)
    alone = find_scales(group[:1], args, method, torch.bfloat16, importance_K)[0]
    assert not torch.equal(alone.scale if name == "fp8" else alone.global_scale, shared[0])


@ALL
@pytest.mark.parametrize("method", METHODS)
def test_constant_weights_give_finite_scales(scheme: Scheme, method: Method) -> None:
    """Zeros stay zeros; all-equal, subnormal and huge values survive."""
    for fill in (0.0, 0.5, -3e-39, 1e-44, 2e-38, 1e30, -1e-7):
        weight = torch.full((4, 256), fill)
        scales = find_scales([weight], scheme.weights, method, torch.bfloat16, torch.ones(256))[0]
        step, decoded = scales.step(), fake_quantize(weight, scales, scheme.weights)
        assert step.isfinite().all()
        assert (step != 0).all() or (abs(fill) < 1e-6 and scheme.weights.type == "iq")  # a codebook without zero
        assert decoded.isfinite().all()
        if scheme.name in GGML_FORMATS and abs(fill) < 1e-6:  # below what float16 scales reach
            torch.testing.assert_close(decoded, weight, rtol=0, atol=2**-24 * 8)
        elif scheme.name in GGML_FORMATS and fill > 1e9:  # and above
            assert (decoded > 60_000).all()
        elif fill == 0 or abs(fill) > 1e-30:
            torch.testing.assert_close(decoded, weight, rtol=0.35, atol=0)


@ALL
def test_a_row_of_zeros_beside_others_stays_zero(scheme: Scheme, weight_NK: torch.Tensor) -> None:
    scales = find_scales([weight_NK], scheme.weights, "mse", torch.bfloat16)[0]
    assert (fake_quantize(weight_NK, scales, scheme.weights)[5] == 0).all()


@ALL
def test_scaling_the_weight_scales_the_result(scheme: Scheme, weight_NK: torch.Tensor) -> None:
    """A power of two moves no code: the grid is relative. Not so where float16 scales are subnormal."""
    weight_NK = weight_NK[7:]  # without zeros, whose scale is the type's own epsilon
    weight_NK = weight_NK * 1024 if scheme.name in GGML_FORMATS else weight_NK
    one, four = (
        fake_quantize(w, find_scales([w], scheme.weights, "mse", torch.bfloat16)[0], scheme.weights)
        for w in (weight_NK, weight_NK * 4)
    )
    torch.testing.assert_close(one * 4, four, rtol=0, atol=0)


@ALL
def test_parts_of_a_large_weight_change_nothing(
    scheme: Scheme, weight_NK: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = find_scales([weight_NK], scheme.weights, "mse", torch.bfloat16)[0]
    monkeypatch.setattr("optcore.algorithms.scale_search._PART_values", 1000)
    in_parts = find_scales([weight_NK], scheme.weights, "mse", torch.bfloat16)[0]
    assert torch.equal(_bytes(whole.scale), _bytes(in_parts.scale))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(PRESETS)), st.integers(1, 300), st.integers(1, 3), st.integers(0, 2**31), st.booleans())
def test_any_shape_round_trips(name: str, rows: int, groups: int, seed: int, searched: bool) -> None:
    """Errors stay within a step (below the end of the range), whatever the shape."""
    args, generator = PRESETS[name].weights, torch.Generator().manual_seed(seed)
    columns = (SUPER_BLOCK if args.scale_type == "super" else 128) * groups
    weight = torch.randn(rows, columns, generator=generator) * 10 ** torch.rand(1, generator=generator)
    scales = find_scales([weight], args, "mse" if searched else "max", torch.float32)[0]
    points = lattice(scales, args, (rows, columns))
    decoded = decode(encode(weight, scales, args), scales, args)
    assert _same_bits(points.nearest(weight), decoded)
    assert (decoded - weight).norm() < weight.norm() * (0.75 if args.bits == 2 else 0.45)


def test_ragged_blocks_know_their_edges() -> None:
    """130 x 200 in blocks of 128: the last ones are 2 and 72 wide."""
    args = PRESETS["fp8_block"].weights
    weight = torch.randn(130, 200, generator=torch.Generator().manual_seed(7))
    weight[129, 199] = 100
    scales = find_scales([weight], args, "max", torch.float32)[0]
    assert scales.scale.shape == (2, 2)
    assert scales.scale[1, 1].item() == pytest.approx(100 / 448)
    assert spread(scales.scale, args, (130, 200))[128, 128] == scales.scale[1, 1]
    expected = torch.stack([weight[:128, :128].abs().amax(), weight[:128, 128:].abs().amax()]) / 448
    assert torch.equal(scales.scale[0], expected)


def test_double_quantization_is_within_a_code_of_single(weight_NK: torch.Tensor) -> None:
    """Steps differ from the exact ones by at most half a code of their 256, and 8 bits more a group are enough."""
    args = PRESETS["nf4"].weights
    scales = find_scales([weight_NK], args, "max", torch.bfloat16)[0]
    assert scales.second is not None
    exact = blocks(weight_NK, args).abs().amax(-1)
    code = scales.second.repeat_interleave(256)[: exact.numel()].view(exact.shape)
    assert ((scales.step() - exact).abs() <= code * 0.5 + 1e-7).all()
    assert scales.second.shape == (-(-exact.numel() // 256),)


def test_step_is_scale_over_divisor() -> None:
    scales = Scales(torch.tensor([[2.0]]).to(torch.float8_e4m3fn), torch.tensor([4.0]))
    assert scales.step().item() == 0.5


def _layout(args: QuantArgs) -> str:
    if args.scale_type == "e4m3":
        return "nvfp4-pack-quantized"
    if args.scale_type == "e8m0":
        return "mxfp8-quantized" if args.bits == 8 else "mxfp4-pack-quantized"
    if args.type == "float":
        return "float-quantized"
    return "pack-quantized" if args.packed or args.bits < 8 else "int-quantized"


def _library_scales(weight_NK: torch.Tensor, args: QuantizationArgs, scheme: Scheme) -> dict[str, torch.Tensor]:
    """What its observers would hand over: float32 scales, whatever they are stored in."""
    values = blocks(weight_NK, scheme.weights)
    low, high = values.amin(-1), values.amax(-1)
    if scheme.weights.strategy == "tensor":
        low, high = low.amin().reshape(1), high.amax().reshape(1)
    divisor = {"global_scale": generate_gparam(low.amin(), high.amax())} if scheme.weights.scale_type == "e4m3" else {}
    scale, zero = calculate_qparams(low, high, args, **divisor)
    found = {"weight_scale": scale, **({"weight_global_scale": divisor["global_scale"]} if divisor else {})}
    return found | ({} if scheme.weights.symmetric else {"weight_zero_point": zero.to(torch.int8)})


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(_bytes(a), _bytes(b))
