"""Gram matrices against float64, and what the upper triangle alone holds."""

import pytest
import torch

from optcore.kernels import gram
from optcore.kernels.gram import accumulate, accumulate_cross, symmetric


def _inputs(tokens: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "columns"), [(7, 1), (300, 64), (5000, 100), (200, 513), (65, 1100)])
def test_gram_is_that_of_float64(tokens: int, columns: int, dtype: torch.dtype) -> None:
    x_TK = _inputs(tokens, columns).to(dtype)
    gram_KK = torch.zeros(columns, columns)
    for part_TK in x_TK.split(tokens // 2 + 1):
        accumulate(gram_KK, part_TK)
    exact_KK = x_TK.double().mT @ x_TK.double()
    torch.testing.assert_close(symmetric(gram_KK).double(), exact_KK, rtol=1e-5, atol=1e-5 * float(exact_KK.max()))


def test_only_the_upper_triangle_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "_PANELS_FROM_columns", 64)
    monkeypatch.setattr(gram, "_PANEL_columns", 48)
    x_TK = _inputs(50, 130)
    gram_KK = torch.zeros(130, 130)
    accumulate(gram_KK, x_TK)
    assert (gram_KK[100:, :48] == 0).all(), "panels do no work below the diagonal"
    torch.testing.assert_close(symmetric(gram_KK), x_TK.mT @ x_TK)
    gram_KK[torch.ones_like(gram_KK).tril(-1).bool()] = torch.nan
    torch.testing.assert_close(symmetric(gram_KK), x_TK.mT @ x_TK)
    assert torch.equal(symmetric(gram_KK), symmetric(gram_KK).mT)


def test_no_token_adds_nothing() -> None:
    gram_KK = torch.ones(4, 4)
    accumulate(gram_KK, torch.empty(0, 4))
    assert torch.equal(gram_KK, torch.ones(4, 4))


def test_cross_gram_is_that_of_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram, "CHUNK_tokens", 16)
    x_TK, other_TK = _inputs(50, 40), _inputs(50, 40, seed=1)
    cross_KK = torch.zeros(40, 40)
    accumulate_cross(cross_KK, x_TK, other_TK)
    torch.testing.assert_close(cross_KK.double(), x_TK.double().mT @ other_TK.double(), rtol=1e-4, atol=1e-4)
