"""Rounding with error feedback, against a naive float64 column loop, exhaustive search and hostile Hessians."""

from itertools import pairwise, product

import pytest
import torch

from optcore.algorithms.codes import decode, encode
from optcore.algorithms.factor import factor_columns
from optcore.algorithms.gptq import Rounded, gptq, gptq_batch
from optcore.algorithms.lattice import Lattice, lattice
from optcore.algorithms.scales import Scales, find_scales
from optcore.schemes import PRESETS, QuantArgs
from optcore.techniques.options import Gptq

ALL = pytest.mark.parametrize("name", PRESETS)
# One of each way to round and to place scales.
FEW = pytest.mark.parametrize(
    "name", ["int2_g16", "int4_asym_g32", "int8", "fp8_block", "nvfp4", "mxfp4", "nf4", "q4_k", "iq4_nl"]
)
PLAIN = Gptq(sweeps=0)
INT4 = PRESETS["int4_g32"].weights


def _problem(outputs: int = 48, inputs: int = 256, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and the Gram matrix of correlated inputs of very different sizes."""
    random = torch.Generator().manual_seed(seed)
    weight_NK = torch.randn(outputs, inputs, generator=random) * 0.02
    mixing_KK = torch.eye(inputs) + torch.randn(inputs, inputs, generator=random) * 0.1
    inputs_TK = torch.randn(4 * inputs, inputs, generator=random) @ mixing_KK
    inputs_TK *= (2 * torch.rand(inputs, generator=random)).exp()
    return weight_NK, inputs_TK.mT @ inputs_TK / len(inputs_TK)


def _scales(weight_NK: torch.Tensor, args: QuantArgs) -> Scales:
    return find_scales([weight_NK], args, "mse", torch.bfloat16)[0]


def _loss(difference_NK: torch.Tensor, gram_KK: torch.Tensor) -> float:
    return float((difference_NK.double() @ gram_KK.double() * difference_NK.double()).sum())


def _points(weight_NK: torch.Tensor, scales: Scales, args: QuantArgs) -> Lattice:
    return lattice(scales, args, (weight_NK.shape[0], weight_NK.shape[1]))


def _column_loop(weight_NK: torch.Tensor, gram_KK: torch.Tensor, points: Lattice, options: Gptq) -> torch.Tensor:
    """GPTQ as its paper writes it (arXiv:2210.17323, algorithm 1), in float64, a column at a time."""
    diagonal_K = gram_KK.diagonal()
    order_K = diagonal_K.argsort(descending=True, stable=True) if options.act_order else torch.arange(len(gram_KK))
    hessian_KK = gram_KK.double()[order_K][:, order_K]
    hessian_KK = hessian_KK + options.damping * diagonal_K.double().mean() * torch.eye(len(gram_KK))
    upper_KK = torch.linalg.cholesky(torch.linalg.inv(hessian_KK), upper=True)
    rest_NK, rounded_NK = weight_NK.double()[:, order_K], torch.zeros_like(weight_NK)
    for place, column in enumerate(order_K.tolist()):
        value_N1 = rest_NK[:, place : place + 1]
        nearest_N1 = points.columns(slice(column, column + 1)).nearest(value_N1.float())
        error_N1 = (value_N1 - nearest_N1) / upper_KK[place, place]
        rest_NK = rest_NK - error_N1 * upper_KK[place]
        rounded_NK[:, column] = nearest_N1.squeeze(1)
    return rounded_NK


@FEW
@pytest.mark.parametrize("act_order", [True, False])
def test_blocks_lose_as_little_as_the_column_loop(name: str, act_order: bool) -> None:
    args, options = PRESETS[name].weights, Gptq(sweeps=0, act_order=act_order)
    weight_NK, gram_KK = _problem()
    scales = _scales(weight_NK, args)
    found = gptq(weight_NK, gram_KK, scales, args, options)
    points = _points(weight_NK, scales, args)
    naive = _loss(weight_NK - _column_loop(weight_NK, gram_KK, points, options), gram_KK)
    nearest = _loss(weight_NK - points.nearest(weight_NK), gram_KK)
    assert found.loss == pytest.approx(min(naive, nearest), rel=1e-3)
    assert found.loss == pytest.approx(_loss(weight_NK - found.weight_NK, gram_KK), rel=1e-3)
    assert found.nearest_loss == pytest.approx(nearest, rel=1e-3)
    assert found.damping == options.damping


@ALL
def test_the_weight_is_what_its_codes_decode_to(name: str) -> None:
    args = PRESETS[name].weights
    weight_NK, gram_KK = _problem()
    found = gptq(weight_NK, gram_KK, _scales(weight_NK, args), args, Gptq())
    decoded_NK = decode(encode(found.weight_NK, found.scales, args), found.scales, args)
    assert torch.equal(decoded_NK.view(torch.int32), found.weight_NK.view(torch.int32))
    assert found.loss < 0.6 * found.nearest_loss


@FEW
def test_sweeps_never_raise_the_loss(name: str) -> None:
    args = PRESETS[name].weights
    weight_NK, gram_KK = _problem()
    scales = _scales(weight_NK, args)
    losses = [gptq(weight_NK, gram_KK, scales, args, Gptq(sweeps=n, refit=False)).loss for n in range(5)]
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in pairwise(losses)), losses
    assert losses[2] < losses[0]


def test_sweeps_end_where_no_single_code_is_better() -> None:
    args = PRESETS["int2_g16"].weights
    weight_NK, gram_KK = _problem(outputs=3, inputs=32)
    scales = _scales(weight_NK, args)
    found_NK = gptq(weight_NK, gram_KK, scales, args, Gptq(sweeps=8, refit=False)).weight_NK
    step_NK = _points(weight_NK, scales, args).step_NK
    best = _loss(weight_NK - found_NK, gram_KK)
    for row, column, code in product(range(3), range(32), range(-2, 2)):
        moved_NK = found_NK.clone()
        moved_NK[row, column] = code * step_NK[row, column]
        assert _loss(weight_NK - moved_NK, gram_KK) >= best * (1 - 1e-6)


def test_few_columns_come_close_to_the_best_of_all_codes() -> None:
    args = QuantArgs(bits=2, type="int", strategy="channel")
    weight_NK, gram_KK = _problem(outputs=16, inputs=5)
    scales = _scales(weight_NK, args)
    found = gptq(weight_NK, gram_KK, scales, args, Gptq(refit=False))
    codes_CK = torch.tensor(list(product(range(-2, 2), repeat=5)), dtype=torch.float32)
    differences_NCK = weight_NK.unsqueeze(1) - codes_CK * scales.step().unsqueeze(1)
    losses_NC = ((differences_NCK @ gram_KK) * differences_NCK).sum(-1)
    best = float(losses_NC.amin(1).sum())
    assert best * (1 - 1e-5) <= found.loss <= best * 1.1


@pytest.mark.parametrize("name", ["int4_g32", "int4_asym_g32", "int2_g16", "fp8_dynamic", "q4_0"])
def test_refitted_scales_lower_the_loss(name: str) -> None:
    args = PRESETS[name].weights
    weight_NK, gram_KK = _problem()
    scales = find_scales([weight_NK], args, "max", torch.bfloat16)[0]
    kept, fitted = (gptq(weight_NK, gram_KK, scales, args, Gptq(refit=refit)) for refit in (False, True))
    assert fitted.loss < kept.loss
    assert fitted.scales.scale.dtype == scales.scale.dtype
    assert not torch.equal(fitted.scales.scale, scales.scale)
    assert torch.equal(kept.scales.scale, scales.scale)
    assert fitted.nearest_loss == kept.nearest_loss


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "fp8", "fp8_block", "nf4", "q4_k", "q6_k", "q4_1"])
def test_scales_that_are_not_free_stay(name: str) -> None:
    args = PRESETS[name].weights
    weight_NK, gram_KK = _problem()
    scales = _scales(weight_NK, args)
    assert gptq(weight_NK, gram_KK, scales, args, Gptq(refit=True)).scales is scales


def test_the_target_stays_when_inputs_are_the_same() -> None:
    weight_NK, gram_KK = _problem()
    scales = _scales(weight_NK, INT4)
    plain = gptq(weight_NK, gram_KK, scales, INT4, PLAIN)
    moved = gptq(weight_NK, gram_KK, scales, INT4, Gptq(sweeps=0, asymmetry=1), gram_KK)
    assert torch.equal(plain.weight_NK, moved.weight_NK)


def test_an_asymmetric_target_brings_the_output_nearer_to_the_original() -> None:
    random = torch.Generator().manual_seed(5)
    weight_NK, _ = _problem(inputs=64)
    original_TK = torch.randn(500, 64, generator=random)
    inputs_TK = original_TK @ (torch.eye(64) + 0.1 * torch.randn(64, 64, generator=random))
    gram_KK, cross_KK = inputs_TK.mT @ inputs_TK / 500, inputs_TK.mT @ original_TK / 500
    scales = _scales(weight_NK, INT4)
    errors = []
    for asymmetry in (0.0, 0.5, 1.0):
        options = Gptq(asymmetry=asymmetry, damping=1e-6)  # so that the target is the least squares' own
        found = gptq(weight_NK, gram_KK, scales, INT4, options, cross_KK)
        wanted_TN = (1 - asymmetry) * inputs_TK @ weight_NK.mT + asymmetry * original_TK @ weight_NK.mT
        target_NK = torch.linalg.lstsq(inputs_TK.double(), wanted_TN.double()).solution.mT
        assert found.loss == pytest.approx(_loss(target_NK - found.weight_NK, gram_KK), rel=0.02)
        errors.append(float((inputs_TK @ found.weight_NK.mT - original_TK @ weight_NK.mT).square().sum()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_an_asymmetric_target_needs_both_inputs() -> None:
    weight_NK, gram_KK = _problem(inputs=32)
    with pytest.raises(ValueError, match="cross Gram"):
        gptq(weight_NK, gram_KK, _scales(weight_NK, INT4), INT4, Gptq(asymmetry=0.5))


def test_the_order_does_not_matter_to_unrelated_inputs() -> None:
    weight_NK, gram_KK = _problem()
    diagonal_KK, scales = gram_KK.diagonal().diag(), _scales(weight_NK, INT4)
    nearest_NK = _points(weight_NK, scales, INT4).nearest(weight_NK)
    for act_order in (True, False):
        found = gptq(weight_NK, diagonal_KK, scales, INT4, Gptq(act_order=act_order, refit=False))
        assert torch.equal(found.weight_NK, nearest_NK)


def test_damping_climbs_until_the_hessian_can_be_factored() -> None:
    weight_NK, gram_KK = _problem()
    mean = gram_KK.diagonal().mean()
    lowest = torch.linalg.eigvalsh(gram_KK)[0]
    indefinite_KK = gram_KK - (lowest + 0.03 * mean) * torch.eye(len(gram_KK))
    indefinite_KK.diagonal().clamp_(min=0)
    found = gptq(weight_NK, indefinite_KK, _scales(weight_NK, INT4), INT4, PLAIN)
    assert found.damping == pytest.approx(0.05)
    assert found.loss <= found.nearest_loss


@pytest.mark.parametrize("hessian", ["nan", "infinite", "negative", "indefinite"])
def test_a_hessian_of_no_use_is_reported(hessian: str) -> None:
    weight_NK, gram_KK = _problem(inputs=64)
    if hessian == "indefinite":
        gram_KK = 1e6 * (1 - torch.eye(64)) + torch.eye(64)
        gram_KK[:32, 32:] *= -1
    elif hessian == "negative":
        gram_KK = -gram_KK
    else:
        gram_KK[3, 4] = torch.nan if hessian == "nan" else torch.inf
    scales = _scales(weight_NK, INT4)
    found = gptq(weight_NK, gram_KK, scales, INT4, Gptq())
    assert found.damping is None
    assert torch.equal(found.weight_NK, _points(weight_NK, scales, INT4).nearest(weight_NK))


def test_inputs_that_never_occurred_are_plainly_rounded() -> None:
    weight_NK, gram_KK = _problem()
    dead = torch.tensor([0, 7, 255])
    gram_KK[dead], gram_KK[:, dead] = 0, 0
    scales = _scales(weight_NK, INT4)
    found = gptq(weight_NK, gram_KK, scales, INT4, Gptq(refit=False))
    assert torch.equal(found.weight_NK[:, dead], _points(weight_NK, scales, INT4).nearest(weight_NK)[:, dead])
    assert found.damping == 0.01
    assert found.loss < 0.5 * found.nearest_loss


def test_no_input_at_all_is_plain_rounding() -> None:
    weight_NK, gram_KK = _problem()
    scales = _scales(weight_NK, INT4)
    found = gptq(weight_NK, torch.zeros_like(gram_KK), scales, INT4, Gptq())
    assert torch.equal(found.weight_NK, _points(weight_NK, scales, INT4).nearest(weight_NK))
    assert found.loss == found.nearest_loss == 0


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (5, 1), (1, 100), (3, 17), (2, 129), (4, 300)])
@pytest.mark.parametrize("name", ["int8_w8a16", "fp8"])
def test_odd_shapes(outputs: int, inputs: int, name: str) -> None:
    args = PRESETS[name].weights
    weight_NK, gram_KK = _problem(outputs, inputs)
    scales = _scales(weight_NK, args)
    found = gptq(weight_NK, gram_KK, scales, args, PLAIN)
    naive_NK = _column_loop(weight_NK, gram_KK, _points(weight_NK, scales, args), PLAIN)
    # One code in float64 that is a tie in float32 shows where there are so few.
    assert found.loss == pytest.approx(min(_loss(weight_NK - naive_NK, gram_KK), found.nearest_loss), rel=0.01)
    assert gptq(weight_NK, gram_KK, scales, args, Gptq()).loss <= found.loss * (1 + 1e-5)


def test_rows_of_zeros_stay() -> None:
    weight_NK, gram_KK = _problem()
    weight_NK[3] = 0
    found = gptq(weight_NK, gram_KK, _scales(weight_NK, INT4), INT4, Gptq())
    assert (found.weight_NK[3] == 0).all()


def _same(one: Rounded, other: Rounded) -> None:
    assert one.damping == other.damping
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-3, atol=0, equal_nan=True)
    assert float((one.weight_NK != other.weight_NK).float().mean()) < 0.01


@pytest.mark.parametrize("name", ["int4_g32", "int4_asym_g32", "nvfp4", "int8", "fp8", "q4_k"])
def test_experts_together_are_each_alone(name: str) -> None:
    args, options = PRESETS[name].weights, Gptq(asymmetry=0.3)
    problems = [_problem(seed=seed) for seed in range(4)]
    problems[2][1][0, 0] = torch.nan
    grams = [gram_KK for _, gram_KK in problems]
    crosses = [gram_KK * 0.9 for gram_KK in grams]
    scales = [_scales(weight_NK, args) for weight_NK, _ in problems]
    weights = [weight_NK for weight_NK, _ in problems]
    together = gptq_batch(torch.stack(weights), torch.stack(grams), scales, args, options, torch.stack(crosses))
    for each, weight_NK, gram_KK, own, cross_KK in zip(together, weights, grams, scales, crosses, strict=True):
        _same(each, gptq(weight_NK, gram_KK, own, args, options, cross_KK))
    assert [rounded.damping for rounded in together] == [0.01, 0.01, None, 0.01]


def test_large_matrices_are_factored_one_by_one_to_the_same_bits() -> None:
    x_EKT = torch.randn(2, 1030, 300, generator=torch.Generator().manual_seed(0))
    gram_EKK = x_EKT @ x_EKT.mT
    columns_EKK, dampings = factor_columns(gram_EKK, 0.01)
    assert dampings == [0.01, 0.01]
    assert torch.equal(columns_EKK, torch.cat([factor_columns(gram_KK[None], 0.01)[0] for gram_KK in gram_EKK]))


def test_arguments_are_left_alone() -> None:
    weight_NK, gram_KK = _problem()
    scales = _scales(weight_NK, INT4)
    before = [weight_NK.clone(), gram_KK.clone(), scales.scale.clone()]
    gptq(weight_NK, gram_KK, scales, INT4, Gptq(asymmetry=0.5), gram_KK * 0.9)
    assert all(torch.equal(*pair) for pair in zip(before, [weight_NK, gram_KK, scales.scale], strict=True))
