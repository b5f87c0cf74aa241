"""Which weights stay, and what SparseGPT and ALPS make of the rest: against float64 and brute force."""

import itertools

import pytest
import torch

from optcore.algorithms.alps import alps
from optcore.algorithms.sparsegpt import sparsegpt
from optcore.algorithms.sparsity import Budget, kept, outlier_share, owl_ratios, ria_scores, wanda_scores


def _problem(outputs: int = 48, inputs: int = 96, rank: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and the Gram matrix of correlated inputs of uneven size."""
    generator = torch.Generator().manual_seed(5)
    mixing_RK = torch.randn(rank, inputs, generator=generator)
    x_TK = torch.randn(512, rank, generator=generator) @ mixing_RK + torch.randn(512, inputs, generator=generator)
    x_TK *= torch.linspace(0.3, 3, inputs)
    return torch.randn(outputs, inputs, generator=generator), x_TK.mT @ x_TK / 512


def _loss(weight_NK: torch.Tensor, sparse_NK: torch.Tensor, gram_KK: torch.Tensor) -> float:
    difference_NK = (weight_NK - sparse_NK).double()
    return float((difference_NK @ gram_KK.double() * difference_NK).sum())


@pytest.mark.parametrize("budget", [Budget(0.5), Budget(0.7), Budget(0.5, (2, 4)), Budget(0.625, (3, 8))])
def test_error_falls_from_method_to_method(budget: Budget) -> None:
    weight_NK, gram_KK = _problem()
    importance_K = gram_KK.diagonal()
    found = {
        "random": weight_NK * kept(torch.rand(weight_NK.shape, generator=torch.Generator().manual_seed(1)), budget),
        "magnitude": weight_NK * kept(weight_NK.abs(), budget),
        "wanda": weight_NK * kept(wanda_scores(weight_NK, importance_K), budget, by_row=True),
        "sparsegpt": sparsegpt(weight_NK, gram_KK, budget),
        "alps": alps(weight_NK, gram_KK, budget),
    }
    losses = {name: _loss(weight_NK, sparse, gram_KK) for name, sparse in found.items() if sparse is not None}
    print(budget, {name: round(loss) for name, loss in losses.items()})
    assert len(losses) == 5
    assert losses["alps"] < losses["sparsegpt"] < losses["wanda"] < losses["magnitude"] < losses["random"]


def test_masks_hold_their_counts_with_ties_too() -> None:
    score_NK = torch.ones(6, 40)
    assert kept(score_NK, Budget(0.29)).sum() == 240 - 70
    assert (kept(score_NK, Budget(0.3), by_row=True).sum(1) == 28).all()
    assert (kept(score_NK, Budget(0.75, (2, 8))).view(-1, 8).sum(1) == 2).all()
    assert kept(score_NK, Budget(0)).all()


def test_scores_are_what_the_papers_say() -> None:
    weight_NK = torch.tensor([[1.0, -2.0, 0.0], [3.0, 4.0, 5.0]])
    importance_K = torch.tensor([4.0, 9.0, 16.0])
    torch.testing.assert_close(wanda_scores(weight_NK, importance_K), torch.tensor([[2.0, 6.0, 0.0], [6, 12, 20]]))
    columns, rows, roots = [4.0, 6.0, 5.0], [3.0, 12.0], [2.0**0.5, 3.0**0.5, 2.0]
    expected_NK = torch.tensor(
        [[abs(float(weight_NK[i, j])) * (1 / columns[j] + 1 / rows[i]) * roots[j] for j in range(3)] for i in range(2)]
    )
    torch.testing.assert_close(ria_scores(weight_NK, importance_K), expected_NK)
    scores = [torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[1.0, 1.0, 1.0, 20.0]])]
    assert outlier_share(scores, 5) == 1 / 7  # above 5 * 26 / 7


def test_owl_keeps_the_mean_and_the_order() -> None:
    ratios = owl_ratios([0.01, 0.03, 0.02, 0.0], 0.6, 0.08)
    assert sum(ratios) / 4 == pytest.approx(0.6)
    assert max(ratios) - min(ratios) == pytest.approx(0.16)
    assert sorted(range(4), key=ratios.__getitem__) == [1, 2, 0, 3]
    assert owl_ratios([0.02, 0.02], 0.6, 0.08) == [0.6, 0.6]


@pytest.mark.parametrize("budget", [Budget(0.5), Budget(0.5, (2, 4))])
def test_sparsegpt_is_the_papers_recursion_over_inverse_hessians(budget: Budget) -> None:
    """Column by column with the inverse of what is left of H, in float64: nothing is factored."""
    weight_NK, gram_KK = _problem(8, 24, 6)
    hessian_KK = gram_KK.double() + 0.01 * gram_KK.double().diagonal().mean() * torch.eye(24, dtype=torch.float64)
    now_NK, block = weight_NK.double().clone(), 8
    keep_NK = torch.ones(8, 24, dtype=torch.bool)
    step = budget.group[1] if budget.group else block
    for k in range(24):
        if k % step == 0:
            score_NP = torch.stack(
                [now_NK[:, j] ** 2 / torch.linalg.inv(hessian_KK[j:, j:])[0, 0] for j in range(k, k + step)], 1
            )
            keep_NK[:, k : k + step] = kept(score_NP, budget)
        inverse_FF = torch.linalg.inv(hessian_KK[k:, k:])
        error_N = now_NK[:, k] * ~keep_NK[:, k] / inverse_FF[0, 0]
        now_NK[:, k:] -= error_N[:, None] * inverse_FF[0]
    now_NK *= keep_NK
    found_NK = sparsegpt(weight_NK, gram_KK, budget, block=block)
    assert found_NK is not None
    torch.testing.assert_close(found_NK.double(), now_NK, rtol=1e-3, atol=1e-4)
    assert ((found_NK != 0) == keep_NK).all()


def test_alps_solves_its_support_and_comes_close_to_the_best_of_all() -> None:
    weight_NK, gram_KK = _problem(1, 10, 4)
    found_NK = alps(weight_NK, gram_KK, Budget(0.5), damping=1e-6)
    assert found_NK is not None
    losses = {support: _loss(weight_NK, _solved(weight_NK, gram_KK, support), gram_KK) for support in _supports(10)}
    own = tuple(found_NK[0].nonzero().squeeze(1).tolist())
    loss, best, median = _loss(weight_NK, found_NK, gram_KK), min(losses.values()), sorted(losses.values())[126]
    print(f"ALPS {loss:.4f}, best of {len(losses)} supports {best:.4f}, median {median:.4f}")
    assert loss == pytest.approx(losses[own], rel=1e-3)
    assert loss < best + 0.1 * (median - best)


def _supports(inputs: int) -> list[tuple[int, ...]]:
    return list(itertools.combinations(range(inputs), inputs // 2))


def _solved(weight_NK: torch.Tensor, gram_KK: torch.Tensor, support: tuple[int, ...]) -> torch.Tensor:
    """Least squares on a support, by the normal equations in float64."""
    chosen, gram_KK = list(support), gram_KK.double()
    pull_SN = (weight_NK.double() @ gram_KK)[:, chosen].mT
    solved_NK = torch.zeros_like(weight_NK, dtype=torch.float64)
    solved_NK[:, chosen] = torch.linalg.solve(gram_KK[chosen][:, chosen], pull_SN).mT
    return solved_NK


def test_inputs_that_never_occurred_go_first() -> None:
    weight_NK, gram_KK = _problem(16, 32, 8)
    dead = torch.arange(0, 32, 4)
    gram_KK[dead], gram_KK[:, dead] = 0, 0
    found_NK = sparsegpt(weight_NK, gram_KK, Budget(0.5, (2, 4)))
    assert found_NK is not None
    assert not found_NK[:, dead].any()
    assert found_NK.isfinite().all()
    solved_NK = alps(weight_NK, gram_KK, Budget(0.5))
    assert solved_NK is not None
    assert solved_NK.isfinite().all()


def test_a_gram_matrix_that_is_none_gives_nothing() -> None:
    weight_NK, gram_KK = _problem(4, 8, 2)
    gram_KK[0, 0] = torch.nan
    assert sparsegpt(weight_NK, gram_KK, Budget(0.5)) is None
    assert alps(weight_NK, gram_KK, Budget(0.5)) is None
