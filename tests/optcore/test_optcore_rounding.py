"""Grids against published tables, golden bytes and brute force in float64."""

import pytest
import torch

from optcore.algorithms.packing import pack_nibbles
from optcore.algorithms.rounding import (
    E2M1_VALUES,
    NF4_VALUES,
    decode_e2m1,
    decode_e8m0,
    decode_nf4,
    encode_e2m1,
    encode_e8m0,
    encode_nf4,
    grid_of,
    round_e2m1,
    round_e4m3,
)
from optcore.schemes import PRESETS, QuantArgs

INT4 = QuantArgs(bits=4, type="int", strategy="group", group_size=8)


def _sweep(largest: float) -> torch.Tensor:
    """Values to both sides of zero, extremes, and the float32 neighbours of each."""
    tiny = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 1e30, -1e30, torch.inf, -torch.inf])
    fine = torch.arange(-largest, largest, largest / 4096)
    x = torch.cat([fine, torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * largest / 3, tiny])
    return torch.cat([x, x.nextafter(torch.tensor(torch.inf)), x.nextafter(torch.tensor(-torch.inf))])


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.int32), b.view(torch.int32))


def test_fp4_golden_bytes() -> None:
    x = torch.tensor([[0, -0.0, 0.1, -0.1, 0.25, -0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -5, -0.75, 6, 7]])
    assert pack_nibbles(encode_e2m1(x)).numpy().tobytes() == bytes.fromhex("00808022 4466ae77")


def test_every_fp4_code_survives_decoding() -> None:
    codes = torch.arange(16, dtype=torch.uint8)
    again = encode_e2m1(decode_e2m1(codes))
    assert again.tolist() == [*range(8), 0, *range(9, 16)]  # minus zero is stored as zero


def test_fp4_rounds_to_nearest_even_code() -> None:
    """Brute force over a fine sweep that hits every midpoint exactly."""
    x = torch.arange(-8, 8.0001, 1 / 64, dtype=torch.float64)
    table = torch.tensor(E2M1_VALUES, dtype=torch.float64)
    distance = (x.abs()[:, None] - table).abs()
    nearest = distance.amin(-1, keepdim=True)
    tied = distance == nearest
    even_first = torch.where(torch.arange(8) % 2 == 0, 0, 1) + torch.where(tied, 0, 10)
    expected = table[even_first.argmin(-1)] * x.sign()
    assert torch.equal(decode_e2m1(encode_e2m1(x.float())).double(), expected)


@pytest.mark.parametrize(
    "scheme", ["int2", "int3", "int4", "int8", "q6_k", "q5_k", "q2_k", "fp8", "nvfp4", "nf4", "iq4_nl"]
)
def test_rounding_is_encoding_and_decoding(scheme: str) -> None:
    """Bit for bit, at ties, zeros, infinities and everywhere between."""
    grid = grid_of(PRESETS[scheme].weights)
    x = _sweep(2 * grid.reach)
    assert _same_bits(grid.round(x), grid.decode(grid.encode(x)))
    assert grid.round(x).isfinite().all()


def test_fp8_is_torchs_own_cast() -> None:
    x = _sweep(600.0)
    assert _same_bits(grid_of(PRESETS["fp8"].weights).round(x), x.clamp(-448, 448).to(torch.float8_e4m3fn).float())


def test_every_fp8_code_is_a_grid_value() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    values = codes.float()[codes.float().isfinite()]
    assert len(values) == 254
    assert values.max() == 448
    assert _same_bits(grid_of(PRESETS["fp8"].weights).round(values), values)


def test_e4m3_saturates_and_rounds_to_even() -> None:
    x = torch.tensor([500.0, -1e9, 448.0, 17.0, 19.0, 2**-10, 3 * 2**-10])
    assert round_e4m3(x).float().tolist() == [448, -448, 448, 16, 20, 0, 2**-8]


def test_nf4_is_the_published_codebook() -> None:
    """Symmetric in its ends, zero exact, increasing; quantiles of the normal distribution (arXiv:2305.14314)."""
    table = torch.tensor(NF4_VALUES, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
    outermost = 0.5 * ((1 - 1 / 32) + (1 - 1 / 30))  # between the 16th parts of either half
    upper = normal.icdf(torch.linspace(outermost, 0.5, 9, dtype=torch.float64))[:-1]
    lower = -normal.icdf(torch.linspace(outermost, 0.5, 8, dtype=torch.float64))[:-1]
    expected = torch.cat([lower, torch.zeros(1, dtype=torch.float64), upper.flip(0)]) / upper[0]
    torch.testing.assert_close(table, expected, atol=2e-7, rtol=0)


def test_nf4_rounds_to_the_nearest() -> None:
    x, table = _sweep(1.2), torch.tensor(NF4_VALUES, dtype=torch.float64)
    x = x[x.isfinite()]
    distance = (x.double()[:, None] - table).abs()
    chosen = distance.gather(1, encode_nf4(x).long()[:, None])[:, 0]
    assert (chosen - distance.amin(1)).abs().max() < 1e-8  # middles are rounded to float32
    assert decode_nf4(torch.arange(16, dtype=torch.uint8)).tolist() == table.float().tolist()


@pytest.mark.parametrize(
    ("amax", "reach", "exponent"),
    [(6.0, 6.0, 0), (4.0, 6.0, 0), (3.9, 6.0, 0), (3.49, 6.0, -1), (8.0, 6.0, 1), (1.0, 6.0, -2), (448.0, 448.0, 1)],
)
def test_exponents_of_powers_of_two(amax: float, reach: float, exponent: int) -> None:
    """OCP's floor(log2 amax) - floor(log2 reach), one more where the mantissa of amax is 1.75 or above."""
    assert encode_e8m0(torch.tensor([amax]), reach).item() - 127 == exponent


def test_every_exponent_code_is_a_power_of_two() -> None:
    codes = torch.arange(255, dtype=torch.uint8)
    assert torch.equal(decode_e8m0(codes).double(), 2.0 ** (codes.double() - 127))
    assert torch.equal(encode_e8m0(decode_e8m0(codes), 1.0), codes)


def test_exponents_stay_in_range() -> None:
    extremes = torch.tensor([0.0, 1e-45, 3.4e38])
    assert encode_e8m0(extremes, 6.0).tolist() == [0, 0, 253]


def test_integer_grid_uses_the_whole_range() -> None:
    grid = grid_of(INT4)
    assert grid.reach == 7.5
    assert grid.round(torch.tensor([-9.0, -7.6, 0.5, 1.5, 7.5])).tolist() == [-8, -8, 0, 2, 7]


def test_half_steps_of_fp4_scale_with_the_binade() -> None:
    assert round_e2m1(torch.tensor([0.24, 0.26, 1.9, 2.4, 2.6, 4.9, 5.1])).tolist() == [0, 0.5, 2, 2, 3, 4, 6]


def test_a_grid_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no 6-bit float grid"):
        grid_of(QuantArgs(bits=6, type="float", strategy="channel"))
