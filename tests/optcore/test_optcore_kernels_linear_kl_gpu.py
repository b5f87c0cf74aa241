"""The fused head and divergence as training runs it on a GPU: in chunks, with the weight's gradient summed in place."""

import pytest
import torch
from torch.nn import functional

from optcore.training.linear_loss import fused_linear_kl

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def _given(rows: int, tokens: int, width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    random = torch.Generator("cuda").manual_seed(0)
    shapes = (rows, width), (tokens, width), (rows, width), (tokens, width)
    return [torch.randn(*one, generator=random, device="cuda").div(width**0.25).to(dtype) for one in shapes]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("tokens", [4096, 50_257])
def test_gradients_are_the_naive_ones(dtype: torch.dtype, tolerance: float, tokens: int) -> None:
    given = _given(700, tokens, 64, dtype)
    ours = [one.clone().requires_grad_() for one in given[:2]]
    naive = [one.double().requires_grad_() for one in given[:2]]
    found = fused_linear_kl(*ours, *given[2:], 256, 2.0)
    q, p = (functional.linear(*pair).div(2).log_softmax(-1) for pair in (naive, [one.double() for one in given[2:]]))
    expected = 4 * functional.kl_div(q, p, log_target=True, reduction="sum")
    assert float(found) == pytest.approx(float(expected), rel=tolerance)
    found.backward()
    expected.backward()
    for own, other in zip(ours, naive, strict=True):
        assert float((own.grad.double() - other.grad).norm() / other.grad.norm()) <= tolerance


def test_eight_thousand_rows_of_a_large_vocabulary_take_little_beyond_their_gradients() -> None:
    given = _given(8192, 128_256, 4096, torch.bfloat16)
    leaves = [one.requires_grad_() for one in given[:2]]
    kept = leaves[0].nbytes + 4 * leaves[1].numel()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fused_linear_kl(*leaves, *given[2:])
    extra = torch.cuda.max_memory_allocated() - before - kept
    print(f"{extra / 1e9:.2f} GB beyond inputs and gradients")
    assert extra <= 1.2e9
