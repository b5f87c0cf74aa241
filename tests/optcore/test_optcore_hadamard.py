"""Hadamard transforms against their matrices."""

import pytest
import torch

from optcore.algorithms.hadamard import largest_block
from optcore.kernels.hadamard import hadamard

ORDERS = [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 56, 60, 72, 128, 12 * 64, 20 * 32, 28 * 16, 36 * 16]


@pytest.mark.parametrize("order", ORDERS)
def test_the_matrix_is_of_signs_and_orthogonal(order: int) -> None:
    matrix = hadamard(torch.eye(order), order)
    torch.testing.assert_close(matrix.abs(), torch.full((order, order), order**-0.5))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(order), rtol=0, atol=1e-5)


def test_powers_of_two_are_sylvesters() -> None:
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    torch.testing.assert_close(hadamard(torch.eye(8), 8) * 8**0.5, torch.kron(pair, torch.kron(pair, pair)))


def test_blocks_do_not_mix() -> None:
    x = torch.zeros(64)
    x[20] = 1
    transformed = hadamard(x, 16)
    assert transformed[16:32].abs().eq(0.25).all()
    assert transformed[:16].eq(0).all()
    assert transformed[32:].eq(0).all()


def test_an_outlier_is_spread() -> None:
    x = torch.randn(4, 3584, generator=torch.Generator().manual_seed(0))
    x[:, 77] = 100
    assert hadamard(x, 3584).abs().amax() < 8


@pytest.mark.parametrize(
    ("size", "block"),
    [
        (4096, 4096),
        (3584, 3584),
        (5120, 5120),
        (2560, 2560),
        (576, 576),
        (960, 960),
        (896, 896),
        (96, 96),
        (7, 1),
        (18, 2),
    ],
)
def test_the_largest_block_divides(size: int, block: int) -> None:
    assert largest_block(size) == block
    assert size % largest_block(size, 64) == 0
    assert largest_block(size, 64) <= 64


def test_an_order_without_a_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="order 6"):
        hadamard(torch.zeros(6), 6)
