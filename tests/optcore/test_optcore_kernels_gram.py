"""In which order the Gram update goes through its tiles: each of them once, neighbours in the same columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from optcore.kernels.gram import _place, _triangular_root
from optcore.kernels.jit import kernel

if TYPE_CHECKING:
    import triton.language as tl

# mypy: disable-error-code="no-untyped-def"


@kernel
def _places(out_ptr, tiles, count, TRIANGLE: tl.constexpr, BAND: tl.constexpr, P: tl.constexpr):
    number_P = tl.arange(0, P)
    row_P, column_P = _place(tl.minimum(number_P, count - 1), tiles, TRIANGLE, BAND)
    tl.store(out_ptr + number_P, row_P * 1000 + column_P, mask=number_P < count)


@kernel
def _roots(out_ptr, numbers_ptr, P: tl.constexpr):
    at_P = tl.arange(0, P)
    tl.store(out_ptr + at_P, _triangular_root(tl.load(numbers_ptr + at_P)))


@pytest.mark.parametrize("triangle", [True, False])
@pytest.mark.parametrize("tiles", [1, 7, 8, 9, 19, 24])
def test_every_tile_has_one_program(tiles: int, triangle: bool) -> None:
    expected = {(row, column) for row in range(tiles) for column in range(row if triangle else 0, tiles)}
    out = torch.full((len(expected),), -1, dtype=torch.int32)
    _places[(1,)](out, tiles, len(expected), TRIANGLE=triangle, BAND=8, P=1024)
    places = [divmod(int(place), 1000) for place in out]
    assert set(places) == expected
    bands = [column // 8 for _, column in places]
    assert bands == sorted(bands), "bands of columns come one after the other"


def test_the_root_of_a_tiles_number_is_exact_where_float32_is_not() -> None:
    roots = torch.tensor([0, 1, 2, 3, 4000, 5000, 9999, 16000], dtype=torch.int32)
    corners = roots * (roots + 1) // 2
    numbers = torch.cat([corners, corners + roots])  # the first and the last number with that root
    out = torch.empty_like(numbers)
    _roots[(1,)](out, numbers, P=16)
    assert out.tolist() == roots.tolist() * 2
