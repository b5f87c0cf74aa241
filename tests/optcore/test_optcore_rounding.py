"""Grids against golden bytes and brute force in float64."""

import pytest
import torch

from optcore.algorithms.packing import pack_int32, pack_nibbles
from optcore.algorithms.rounding import E2M1_VALUES, decode_e2m1, encode_e2m1, grid_of, round_e4m3
from optcore.schemes import QuantArgs

INT4 = QuantArgs(bits=4, type="int", strategy="group", group_size=8)


def test_fp4_golden_bytes() -> None:
    x = torch.tensor([[0, -0.0, 0.1, -0.1, 0.25, -0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -5, -0.75, 6, 7]])
    assert pack_nibbles(encode_e2m1(x)).numpy().tobytes() == bytes.fromhex("00808022 4466ae77")


@pytest.mark.parametrize(
    ("codes", "bits", "word"),
    [([-8, -7, -1, 0, 1, 2, 6, 7], 4, 0xFEA98710), ([-128, -1, 0, 127], 8, 0xFF807F00)],
)
def test_integer_golden_words(codes: list[int], bits: int, word: int) -> None:
    assert pack_int32(torch.tensor([codes]), bits).view(torch.uint32).item() == word


def test_the_last_word_is_padded() -> None:
    packed = pack_int32(torch.tensor([[7] * 9]), 4)
    assert packed.shape == (1, 2)
    assert packed.view(torch.uint32).tolist() == [[0xFFFFFFFF, 0x0000000F]]


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


def test_e4m3_saturates_and_rounds_to_even() -> None:
    x = torch.tensor([500.0, -1e9, 448.0, 17.0, 19.0, 2**-10, 3 * 2**-10])
    assert round_e4m3(x).float().tolist() == [448, -448, 448, 16, 20, 0, 2**-8]


def test_integer_grid_uses_the_whole_range() -> None:
    grid = grid_of(INT4)
    assert grid.reach == 7.5
    assert grid.round(torch.tensor([-9.0, -7.6, 0.5, 1.5, 7.5])).tolist() == [-8, -8, 0, 2, 7]
