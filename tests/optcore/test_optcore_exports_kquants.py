"""ggml's block formats: arithmetic against numpy in ggml's order and by its blocks, fits against float64, odd rows."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from benchmarks.ggml_encoder import ggml_blocks, ggml_decoded
from benchmarks.kquants import relative_error
from optcore.algorithms.block_fit import Blocks, Room, plain_fit
from optcore.algorithms.codes import decode, encode, fake_quantize
from optcore.algorithms.packing import pack, unpack
from optcore.algorithms.rounding import IQ4_VALUES, encode_iq4, grid_of
from optcore.algorithms.scale_search import Method
from optcore.algorithms.scales import Scales, find_scales, storage_of
from optcore.schemes import GGML_FORMATS, PRESETS

NAMES = sorted(GGML_FORMATS)
ALL = pytest.mark.parametrize("name", NAMES)
K_QUANTS = [name for name in NAMES if PRESETS[name].weights.scale_type == "super"]


@pytest.fixture
def weight_NK() -> torch.Tensor:
    return torch.randn(24, 512, generator=torch.Generator().manual_seed(3)) * 0.05


@pytest.fixture
def importance_K() -> torch.Tensor:
    return torch.randn(512, generator=torch.Generator().manual_seed(4)).exp()


def _scales(weight_NK: torch.Tensor, name: str, method: Method = "mse", importance_K: object = None) -> Scales:
    assert importance_K is None or isinstance(importance_K, torch.Tensor)
    return find_scales([weight_NK], PRESETS[name].weights, method, torch.bfloat16, importance_K)[0]


@ALL
@pytest.mark.parametrize("method", ["max", "mse"])
def test_stored_tensors_decode_in_ggmls_order_of_operations(name: str, method: Method, weight_NK: torch.Tensor) -> None:
    """(d * sc) * q - (dmin * m), each product rounded to float32, as `dequantize_row_*` of ggml-quants.c."""
    args = PRESETS[name].weights
    scales = _scales(weight_NK, name, method)
    tensors = pack(encode(weight_NK, scales, args), scales, args)
    codes, read = unpack(tensors, args)
    size, parts = (
        args.group_size or 0,
        {field: tensor for field, tensor in read._asdict().items() if tensor is not None},
    )

    def spread(field: str) -> np.ndarray:
        stored = parts[field].float().numpy()
        return np.repeat(stored, 512 // stored.shape[1], axis=1)

    values = np.array(IQ4_VALUES, np.float32)[codes.numpy()] if args.type == "iq" else codes.numpy().astype(np.float32)
    step = spread("super_scale") * spread("scale") if "super_scale" in parts else spread("scale")
    expected = step * values
    if "minimum" in parts and "super_minimum" in parts:
        expected = expected - spread("super_minimum") * spread("minimum")
    elif "minimum" in parts:
        expected = expected + spread("minimum")
    assert parts["scale"].shape == (24, 512 // size)
    assert torch.equal(decode(codes, read, args), torch.from_numpy(expected))
    assert torch.equal(fake_quantize(weight_NK, scales, args), torch.from_numpy(expected))


@pytest.mark.parametrize("method", ["max", "mse", "hessian"])
def test_q4_k_blocks_decode_to_the_simulated_weight(
    method: Method, weight_NK: torch.Tensor, importance_K: torch.Tensor
) -> None:
    """Block bytes by the layout of ggml-common.h, read by the gguf package."""
    args, scales = PRESETS["q4_k"].weights, _scales(weight_NK, "q4_k", method, importance_K)
    assert scales.super_scale is not None
    assert scales.super_minimum is not None
    assert scales.minimum is not None
    steps, minimums = (part.reshape(-1, 8).numpy() for part in (scales.scale, scales.minimum))
    low = [(part[:, :4] & 63) | (part[:, 4:] >> 4 << 6) for part in (steps, minimums)]
    packed = np.concatenate([*low, (steps[:, 4:] & 15) | (minimums[:, 4:] & 15) << 4], axis=1)
    codes = encode(weight_NK, scales, args).view(-1, 4, 2, 32).numpy()
    halves = [unit.reshape(-1, 1).numpy().view(np.uint8) for unit in (scales.super_scale, scales.super_minimum)]
    octets = np.concatenate([*halves, packed, (codes[:, :, 0] | codes[:, :, 1] << 4).reshape(-1, 128)], axis=1)
    assert octets.shape[1] == 144
    decoded = dequantize(octets, GGMLQuantizationType.Q4_K).reshape(24, 512)
    assert torch.equal(torch.from_numpy(decoded), fake_quantize(weight_NK, scales, args))


@pytest.mark.parametrize("method", ["max", "mse", "hessian"])
def test_q6_k_blocks_decode_to_the_simulated_weight(
    method: Method, weight_NK: torch.Tensor, importance_K: torch.Tensor
) -> None:
    args, scales = PRESETS["q6_k"].weights, _scales(weight_NK, "q6_k", method, importance_K)
    assert scales.super_scale is not None
    codes = (encode(weight_NK, scales, args).view(-1, 2, 4, 32).numpy() + 32).astype(np.uint8)
    low = np.concatenate([codes[:, :, i] & 15 | (codes[:, :, i + 2] & 15) << 4 for i in (0, 1)], axis=-1)
    high = sum((codes[:, :, i] >> 4) << 2 * i for i in range(4))
    steps = scales.scale.reshape(-1, 16).numpy().view(np.uint8)
    unit = scales.super_scale.reshape(-1, 1).numpy().view(np.uint8)
    octets = np.concatenate([low.reshape(-1, 128), high.reshape(-1, 64), steps, unit], axis=1).astype(np.uint8)
    assert octets.shape[1] == 210
    decoded = dequantize(octets, GGMLQuantizationType.Q6_K).reshape(24, 512)
    assert torch.equal(torch.from_numpy(decoded), fake_quantize(weight_NK, scales, args))


@pytest.mark.parametrize("name", ["q8_0", "q5_0", "q5_1", "q4_0", "q4_1"])
def test_plain_scales_are_ggmls_own(name: str, weight_NK: torch.Tensor) -> None:
    """float16 scales and minimums, byte for byte those of the gguf package's encoder."""
    octets = quantize(weight_NK.numpy(), GGMLQuantizationType[name.upper()]).reshape(24, 16, -1)
    scales = _scales(weight_NK, name, "max")
    assert scales.scale.numpy().tobytes() == octets[..., :2].tobytes()
    if scales.minimum is not None:
        assert scales.minimum.numpy().tobytes() == octets[..., 2:4].tobytes()


@ALL
@pytest.mark.parametrize("weighted", [False, True])
def test_errors_are_below_those_of_ggmls_encoder(
    name: str, weighted: bool, weight_NK: torch.Tensor, importance_K: torch.Tensor
) -> None:
    importance = importance_K if weighted else None
    scales = _scales(weight_NK, name, "hessian" if weighted else "mse", importance)
    ours = relative_error(weight_NK, fake_quantize(weight_NK, scales, PRESETS[name].weights), importance)
    theirs = relative_error(weight_NK, ggml_decoded(ggml_blocks(weight_NK, name, importance), name), importance)
    assert ours < theirs


@ALL
def test_a_block_of_zeros_beside_others_stays_zero(name: str, weight_NK: torch.Tensor) -> None:
    weight_NK[3, 64:96] = 0
    for method in ("max", "mse"):
        decoded_NK = fake_quantize(weight_NK, _scales(weight_NK, name, method), PRESETS[name].weights)
        assert (decoded_NK[3, 64:96] == 0).all()
        assert decoded_NK.isfinite().all()


@ALL
def test_tiny_rows_keep_what_float16_scales_can_tell(name: str, weight_NK: torch.Tensor) -> None:
    """A row a thousandth of the others: its units are subnormal, and the integers beside them carry the precision."""
    args, tiny_NK = PRESETS[name].weights, weight_NK * 1e-3
    tiny, usual = (
        relative_error(matrix_NK, fake_quantize(matrix_NK, _scales(matrix_NK, name), args), None)
        for matrix_NK in (tiny_NK, weight_NK)
    )
    assert tiny < usual * 2 + 0.01


@ALL
@pytest.mark.parametrize("offset", [0.0, -3.0, 3.0])
def test_a_search_loses_no_more_than_the_ends_of_a_block(name: str, offset: float, weight_NK: torch.Tensor) -> None:
    """Also far from zero, where sums of squares in float32 say little of the error."""
    shifted_NK = weight_NK + offset
    searched, plain = (
        (fake_quantize(shifted_NK, _scales(shifted_NK, name, method), PRESETS[name].weights) - shifted_NK)
        .double()
        .norm()
        for method in ("mse", "max")
    )
    assert searched <= plain


@pytest.mark.parametrize("name", K_QUANTS)
def test_inputs_that_fill_no_super_block_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="multiple of 256"):
        find_scales([torch.ones(2, 128)], PRESETS[name].weights, "max", torch.bfloat16)


@ALL
def test_parts_of_a_large_weight_lose_as_much(
    name: str, weight_NK: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums over other widths round otherwise, so that near ties fall either way."""
    args = PRESETS[name].weights
    whole = fake_quantize(weight_NK, _scales(weight_NK, name), args)
    monkeypatch.setattr("optcore.kernels.block_scales._PART_values", 2000)
    parts = fake_quantize(weight_NK, _scales(weight_NK, name), args)
    assert relative_error(weight_NK, parts, None) == pytest.approx(relative_error(weight_NK, whole, None), rel=2e-3)
    assert (parts == whole).float().mean() > 0.95


@ALL
def test_steps_are_stored_as_they_are(name: str, weight_NK: torch.Tensor) -> None:
    """Training moves steps and stores them again: what is stored comes back."""
    args, scales = PRESETS[name].weights, _scales(weight_NK, name)
    stored = storage_of(scales, args).store(scales.step())
    assert stored.dtype == scales.scale.dtype
    assert torch.equal(storage_of(scales, args).step(stored), scales.step())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["q4_1", "q4_k", "q6_k"])
def test_the_line_through_codes_is_that_of_least_squares(name: str, weighted: bool) -> None:
    """Block by block against numpy in float64, at the codes that the search ended with."""
    args, random = PRESETS[name].weights, torch.Generator().manual_seed(5)
    values = torch.randn(args.group_size or 0, 2, 6, generator=random)
    importance = torch.rand(values.shape, generator=random) if weighted else None
    blocks, grid = Blocks.of(values, importance, Room(values.numel(), values.device)), grid_of(args)
    below_zero = None if args.symmetric else name == "q4_k"
    plain = plain_fit(blocks, grid, below_zero=below_zero)
    floor = None if plain.floor is None else plain.floor.unsqueeze(0)
    found = blocks.at(grid, plain.step.unsqueeze(0), floor).line(0).best(below_zero=bool(below_zero))
    shifted = values if plain.floor is None else values - plain.floor
    codes = grid.round(shifted / plain.step).double()
    for block in np.ndindex(2, 6):
        own = (slice(None), *block)
        root = np.ones(len(values)) if importance is None else importance[own].double().sqrt().numpy()
        columns = [codes[own].numpy(), *([] if args.symmetric else [np.ones(len(values))])]
        wanted = root * values[own].double().numpy()
        best = np.linalg.lstsq(np.stack(columns, 1) * root[:, None], wanted, rcond=None)[0]
        assert found.step[block].item() == pytest.approx(best[0], rel=1e-4)
        if found.floor is not None:
            assert found.floor[block].item() == pytest.approx(best[1], rel=1e-4)


def test_iq4_rounds_to_the_nearest() -> None:
    x = torch.cat([torch.arange(-130, 130, 0.25), torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 60])
    distance = (x[:, None] - torch.tensor(IQ4_VALUES)).abs()
    assert torch.equal(encode_iq4(x).long(), distance.argmin(1))  # of a tie the first, which is the lower
    assert encode_iq4(torch.tensor([torch.nan, torch.inf, -torch.inf])).tolist() == [8, 15, 0]
