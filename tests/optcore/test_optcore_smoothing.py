"""SmoothQuant and AWQ scales from weights and moments, and the error model that both are searched with."""

from pathlib import Path

import pytest
import torch
from fixtures.tiny_models import MakeModel
from torch import nn

from optcore.algorithms.activations import static_scale
from optcore.algorithms.awq import awq_scales
from optcore.algorithms.codes import fake_quantize
from optcore.algorithms.noise import input_noise
from optcore.algorithms.scales import find_scales
from optcore.algorithms.smoothing import Consumer, output_error, smoothquant_scales, smoothquant_search
from optcore.calibration.statistics import InputStatistics
from optcore.kernels.activations import fake_quantize_activation
from optcore.schemes import PRESETS, Scheme
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import probe_state
from optcore.streaming.structure import folds

WEIGHT_ONLY = ["int4_g32", "int4_asym_g32", "int3_g32", "nvfp4_w4a16", "mxfp4_w4a16", "nf4"]
BOTH = ["int8", "int8_static", "fp8_dynamic", "fp8", "nvfp4", "mxfp4", "mxfp8", "int4_fp8", "fp8_block"]


def test_smoothquant_is_the_papers_formula() -> None:
    x_TK, weights = _outliers()
    consumer = _consumer(x_TK, weights)
    joint_K = torch.cat(weights).abs().amax(0)
    expected = x_TK.abs().amax(0) ** 0.7 / joint_K**0.3
    torch.testing.assert_close(smoothquant_scales([consumer], 0.7), expected)


def test_dead_channels_are_left_alone() -> None:
    x_TK, weights = _outliers()
    x_TK[:, 3] = 0
    weights[0][:, 5] = weights[1][:, 5] = 0
    consumer = _consumer(x_TK, weights)
    for scale_K in (
        smoothquant_scales([consumer], 0.5),
        awq_scales([consumer], PRESETS["int4_g32"], torch.bfloat16, _free, "max").scale_K,
    ):
        assert scale_K.isfinite().all()
        assert (scale_K > 0).all()
        assert scale_K[3] == scale_K[5] == 1
    extreme = _consumer(x_TK * 1e30, weights)
    assert smoothquant_scales([extreme], 1.0).amax() == 1e4


def test_an_input_that_no_token_reached_changes_nothing() -> None:
    _, weights = _outliers()
    consumer = Consumer(weights, InputStatistics())
    assert smoothquant_scales([consumer], 0.5).equal(torch.ones(128))
    found = awq_scales([consumer], PRESETS["int4_g32"], torch.bfloat16, _free, "max")
    assert found.scale_K.equal(torch.ones(128))
    assert found.loss == found.plain_loss == 0


def test_all_consumers_of_a_norm_share_the_scales() -> None:
    x_TK, weights = _outliers()
    few, many = _consumer(x_TK[:32], weights[:1]), _consumer(x_TK, weights[1:])
    unseen = Consumer(weights, InputStatistics())
    scale_K = smoothquant_scales([few, many, unseen], 0.5)
    torch.testing.assert_close(scale_K, smoothquant_scales([_consumer(x_TK, weights)], 0.5))
    found = awq_scales([few, many, unseen], PRESETS["int4_g32"], torch.bfloat16, _free, "max")
    assert found.loss < found.plain_loss


@pytest.mark.parametrize("scheme", WEIGHT_ONLY)
def test_the_weight_error_is_that_of_the_outputs(scheme: str) -> None:
    """tr(dW H dW^T) is the mean squared error of the outputs on the very tokens, smoothing included."""
    x_TK, weights = _outliers()
    chosen, scale_K = PRESETS[scheme], 0.5 + torch.rand(128, generator=torch.Generator().manual_seed(1))
    measured = _measured_error(x_TK, weights, scale_K, chosen)
    modelled = output_error([_consumer(x_TK, weights)], scale_K, chosen, torch.bfloat16, "max")
    assert modelled == pytest.approx(measured, rel=1e-3)


@pytest.mark.parametrize("scheme", BOTH)
@pytest.mark.parametrize("outliers", [False, True])
def test_the_error_with_rounded_inputs_is_near_the_measured_one(scheme: str, outliers: bool) -> None:
    x_TK, weights = _outliers(32.0 if outliers else 1.0)
    chosen, ones_K = PRESETS[scheme], torch.ones(128)
    measured = _measured_error(x_TK, weights, ones_K, chosen)
    modelled = output_error([_consumer(x_TK, weights)], ones_K, chosen, torch.bfloat16, "max")
    print(f"{scheme}, outliers {outliers}: modelled {modelled:.5g}, measured {measured:.5g}")
    assert 0.6 < modelled / measured < 1.6


@pytest.mark.parametrize("scheme", ["int8", "nvfp4", "mxfp4", "fp8_dynamic", "fp8_block"])
def test_noise_is_that_of_normal_inputs(scheme: str) -> None:
    args = PRESETS[scheme].activations
    assert args is not None
    deviation_K = torch.logspace(-1.5, 1.5, 256)[torch.randperm(256, generator=torch.Generator().manual_seed(0))]
    x_TK = torch.randn(4096, 256, generator=torch.Generator().manual_seed(1)) * deviation_K
    amax_K = x_TK.abs().amax(0)
    rounded = fake_quantize_activation(x_TK, args, static_scale(float(amax_K.max()), args, torch.float32))
    measured_K = (rounded - x_TK).square().mean(0)
    modelled_K = input_noise(deviation_K.square(), amax_K, args)
    ratio = (modelled_K.sum() / measured_K.sum()).item()
    print(f"{scheme}: modelled noise over measured {ratio:.3f}")
    assert 0.6 < ratio < 1.4


@pytest.mark.parametrize("scheme", WEIGHT_ONLY + BOTH)
def test_awq_is_never_worse_than_nothing(scheme: str) -> None:
    for largest in (1.0, 8.0, 32.0):
        x_TK, weights = _outliers(largest)
        consumer = _consumer(x_TK, weights)
        found = awq_scales([consumer], PRESETS[scheme], torch.bfloat16, _free, "max")
        plain = _measured_error(x_TK, weights, torch.ones(128), PRESETS[scheme])
        smooth = _measured_error(x_TK, weights, found.scale_K, PRESETS[scheme])
        print(f"{scheme}, outliers x{largest:.0f}: {plain:.5g} -> {smooth:.5g}")
        assert smooth <= plain
        again = output_error([consumer], found.scale_K, PRESETS[scheme], torch.bfloat16, "max")
        assert again == pytest.approx(found.loss)


@pytest.mark.parametrize("scheme", ["int4_g32", "nvfp4_w4a16"])
def test_scales_are_judged_as_they_will_be_found(scheme: str) -> None:
    """With searched weight scales afterwards, smoothing that was chosen for them is the better one."""
    consumer, chosen = _consumer(*_outliers(32.0)), PRESETS[scheme]
    plainly = awq_scales([consumer], chosen, torch.bfloat16, _free, "max").scale_K
    found = awq_scales([consumer], chosen, torch.bfloat16, _free, "hessian")
    loss = output_error([consumer], plainly, chosen, torch.bfloat16, "hessian")
    print(f"{scheme}: none {found.plain_loss:.4g}, chosen by maxima {loss:.4g}, as searched {found.loss:.4g}")
    assert found.loss < loss
    assert found.loss < found.plain_loss


@pytest.mark.parametrize("scheme", ["int8", "int8_static", "nvfp4"])
def test_a_searched_alpha_lowers_the_measured_error_of_outliers(scheme: str) -> None:
    x_TK, weights = _outliers(32.0)
    consumer, chosen = _consumer(x_TK, weights), PRESETS[scheme]
    ones_K = torch.ones(128)
    plain = _measured_error(x_TK, weights, ones_K, chosen)
    auto = smoothquant_search([consumer], chosen, torch.bfloat16, _free, "max")
    smooth = _measured_error(x_TK, weights, auto.scale_K, chosen)
    half = _measured_error(x_TK, weights, smoothquant_scales([consumer], 0.5), chosen)
    print(f"{scheme}: plain {plain:.4g}, alpha 0.5 {half:.4g}, searched {smooth:.4g}")
    assert smooth < plain
    assert smooth < 1.1 * half


def test_awq_lowers_the_measured_error_of_outliers() -> None:
    x_TK, weights = _outliers(32.0)
    assert _left_by_awq(x_TK, weights, "int4_g32") < 0.7


def test_rare_spikes_do_not_set_the_step_of_integer_inputs() -> None:
    """One token in a few hundred is far off in some channels (SwiGLU does that): their mean square hardly shows it."""
    x_TK, weights = _outliers(1.0)
    x_TK[0, ::32] = 24
    assert _left_by_awq(x_TK, weights, "int8_static") < 0.3


def _left_by_awq(x_TK: torch.Tensor, weights: list[torch.Tensor], scheme: str) -> float:
    """The measured error after AWQ over the one without."""
    chosen = PRESETS[scheme]
    found = awq_scales([_consumer(x_TK, weights)], chosen, torch.bfloat16, _free, "max")
    plain = _measured_error(x_TK, weights, torch.ones(128), chosen)
    smooth = _measured_error(x_TK, weights, found.scale_K, chosen)
    print(f"{scheme}: plain {plain:.4g}, AWQ {smooth:.4g}")
    return smooth / plain


def test_smoothquant_undoes_scaled_channels(tiny_model: MakeModel) -> None:
    """Norm channels times 8 to 32, consumers divided: with alpha 0.5 the balance of the layer before comes back."""
    plain, spoilt = _balance(tiny_model("Llama"), spoil=False), _balance(tiny_model("Llama"), spoil=True)
    for path, (before, after) in spoilt.items():
        untouched, smoothed = plain[path]
        print(f"{path}: input amax over median {before:.2f} spoilt, {after:.2f} smoothed, {untouched:.2f} original")
        assert before > 4 * untouched
        assert after == pytest.approx(smoothed, rel=1e-3)


def _balance(folder: Path, *, spoil: bool) -> dict[str, tuple[float, float]]:
    """Largest over median channel magnitude of the inputs after each norm, before and after SmoothQuant."""
    decoder, found = Decoder(folder), {}
    probe = probe_state(decoder)
    with decoder.layer(0) as layer:
        norms = [fold for fold in folds(decoder, 0, layer, probe) if fold.kind == "norm"]
        for fold in norms:
            if spoil:
                factor = torch.ones(128)
                factor[::16] = torch.linspace(8, 32, 8)
                fold.apply(layer, 1 / factor)
            x_TK = _input(layer, fold.consumers[0], lambda: decoder.forward(0, layer, probe))
            consumer = _consumer(x_TK, [layer.get_submodule(path).weight for path in fold.consumers])
            fold.apply(layer, fold.tie(smoothquant_scales([consumer], 0.5)))
            smoothed_TK = _input(layer, fold.consumers[0], lambda: decoder.forward(0, layer, probe))
            found[fold.producer] = (_spread(x_TK), _spread(smoothed_TK))
    return found


def _spread(x_TK: torch.Tensor) -> float:
    amax_K = x_TK.abs().amax(0)
    return float(amax_K.amax() / amax_K.median())


def _input(layer: nn.Module, path: str, forward: object) -> torch.Tensor:
    given: list[torch.Tensor] = []
    handle = layer.get_submodule(path).register_forward_pre_hook(lambda _, args: given.append(args[0]))
    forward()  # type: ignore[operator]
    handle.remove()
    return given[0].reshape(-1, given[0].shape[-1])


def _free(scale_K: torch.Tensor) -> torch.Tensor:
    return scale_K


def _outliers(largest: float = 16.0) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Tokens with a few large channels, and two weights."""
    generator = torch.Generator().manual_seed(7)
    mix = torch.eye(128) + 0.1 * torch.randn(128, 128, generator=generator)
    x_TK = torch.randn(256, 128, generator=generator) @ mix
    x_TK[:, ::32] *= largest
    return x_TK, [0.05 * torch.randn(rows, 128, generator=generator) for rows in (96, 64)]


def _consumer(x_TK: torch.Tensor, weights: list[torch.Tensor]) -> Consumer:
    return Consumer(weights, InputStatistics(len(x_TK), x_TK.abs().amax(0), x_TK.T @ x_TK / len(x_TK)))


def _measured_error(x_TK: torch.Tensor, weights: list[torch.Tensor], scale_K: torch.Tensor, scheme: Scheme) -> float:
    scaled = [weight * scale_K for weight in weights]
    found = find_scales(scaled, scheme.weights, "max", torch.bfloat16)
    inputs = x_TK / scale_K
    if scheme.activations is not None:
        static = static_scale(float(inputs.abs().max()), scheme.activations, torch.float32)
        inputs = fake_quantize_activation(inputs, scheme.activations, static)
    rounded = [fake_quantize(weight, own, scheme.weights) for weight, own in zip(scaled, found, strict=True)]
    errors = [inputs @ w.T - x_TK @ weight.T for w, weight in zip(rounded, weights, strict=True)]
    return float(sum(error.square().sum(1).mean() for error in errors))
