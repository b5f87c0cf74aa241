"""A quantized model that trains: its start is the checkpoint, its gradients are those of the method's papers."""

from pathlib import Path

import pytest
import torch
from fixtures.exporting import Quantize, run_of
from fixtures.tiny_models import MakeModel

from optcore.algorithms.codes import decode, encode
from optcore.algorithms.lattice import lattice
from optcore.algorithms.rounding import code_range
from optcore.algorithms.scales import find_scales
from optcore.quantization import load_quantization
from optcore.schemes import PRESETS
from optcore.streaming.decoder import Decoder
from optcore.streaming.simulate import Simulation, module_paths
from optcore.techniques import Ptq
from optcore.training.fake_quant import FakeQuantLinear
from optcore.training.head import find_head
from optcore.training.masters import master_weight
from optcore.training.straight_through import round_activation, round_weight
from optcore.training.student import Student

TOKENS = torch.arange(48).view(2, 24) * 37 % 2048


@torch.no_grad()
def _streamed(folder: Path) -> torch.Tensor:
    decoder, simulation = Decoder(folder), Simulation(folder)
    state = decoder.embed(TOKENS)
    for index in range(len(decoder)):
        with decoder.layer(index) as layer, simulation.applied(decoder, index, layer):
            state = decoder.forward(index, layer, state, simulation.cache(index))
    return decoder.logits(state)


@torch.no_grad()
def _whole(folder: Path, policy: str = "freeze") -> torch.Tensor:
    student = Student(folder)
    student.simulate(policy)  # type: ignore[arg-type]
    logits: torch.Tensor = student.model(input_ids=TOKENS, use_cache=False).logits
    return logits


@pytest.mark.parametrize("scheme", ["fp8", "int8", "int4_asym", "int2", "nvfp4", "mxfp4", "nf4", "llm_int8"])
def test_the_untrained_start_computes_what_was_quantized(quantized: Quantize, scheme: str) -> None:
    """Every weight to the bit. Logits but for the last bits of a matrix product, which some processors add up in
    another order when its operands lie elsewhere in memory."""
    folder = quantized(scheme)
    student, decoder, simulation = Student(folder), Decoder(folder), Simulation(folder)
    student.simulate("freeze")
    compared = 0
    for index in range(len(decoder)):
        with decoder.layer(index) as layer, simulation.applied(decoder, index, layer), torch.no_grad():
            for path, name in module_paths(decoder, index, layer).items():
                own = student.linears[name]
                assert isinstance(own, FakeQuantLinear)
                assert torch.equal(own.rounded(), layer.get_submodule(path).weight.float()), name
                compared += 1
    assert compared == 7 * len(decoder)
    torch.testing.assert_close(_whole(folder), _streamed(folder), rtol=0, atol=1e-5)


@pytest.mark.parametrize("policy", ["recompute", "learn"])
def test_other_policies_start_there_too(quantized: Quantize, policy: str) -> None:
    folder = quantized("nvfp4_w4a16")
    torch.testing.assert_close(_whole(folder, policy), _streamed(folder), rtol=0, atol=1e-5)


def test_a_quantized_cache_is_trained_through(quantized: Quantize) -> None:
    folder = quantized("int4_g32", kv_cache="fp8")
    assert torch.equal(_whole(folder), _streamed(folder))
    student = Student(folder)
    student.simulate("freeze")
    keys = next(module for name, module in student.linears.items() if name.endswith("0.self_attn.k_proj"))
    keys.weight.requires_grad_()
    student.model(input_ids=TOKENS, use_cache=False).logits.square().sum().backward()
    assert keys.weight.grad is not None
    assert bool(keys.weight.grad.any())


@pytest.mark.parametrize("family", ["Mixtral", "Gemma2", "GptOss"])
def test_searched_and_smoothed_models_of_any_family(family: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model(family)
    Ptq(scheme="nvfp4_w4a16").apply(run_of(model, model, tmp_path / "ptq"))
    torch.testing.assert_close(_whole(tmp_path / "ptq"), _streamed(tmp_path / "ptq"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scheme", ["int4_g32", "int3_asym_g32", "nvfp4_w4a16", "mxfp4_w4a16", "nf4", "fp8_dynamic"])
def test_masters_round_to_the_codes_that_were_chosen(scheme: str) -> None:
    generator = torch.Generator().manual_seed(3)
    dense, args = torch.randn(32, 128, generator=generator), PRESETS[scheme].weights
    scales = find_scales([dense], args, "max", torch.bfloat16)[0]
    points = lattice(scales, args, (32, 128))
    error = (points.nearest(dense) - dense).abs().mean()
    elsewhere = dense + error * torch.randn(dense.shape, generator=generator)
    chosen = points.nearest(elsewhere)  # as error feedback does: not the nearest code for many weights
    start = master_weight(dense, chosen, points)
    assert torch.equal(decode(encode(start, scales, args), scales, args), chosen)
    is_nearest = points.nearest(dense) == chosen
    assert 0.5 < float(is_nearest.float().mean()) < 1
    torch.testing.assert_close(start[is_nearest], dense[is_nearest])
    assert float((start - dense).abs().mean()) < float((chosen - dense).abs().mean())


def test_masters_follow_channel_scales_that_were_moved_into_the_weight() -> None:
    generator = torch.Generator().manual_seed(4)
    dense, args = torch.randn(64, 128, generator=generator), PRESETS["int4_g32"].weights
    balanced = dense * torch.rand(128, generator=generator).add(0.5) / torch.rand(64, 1, generator=generator).add(0.5)
    scales = find_scales([balanced], args, "max", torch.bfloat16)[0]
    points = lattice(scales, args, (64, 128))
    start = master_weight(dense, points.nearest(balanced), points)
    assert torch.equal(points.nearest(start), points.nearest(balanced))
    rounding = (points.nearest(balanced) - balanced).norm()
    assert float((start - balanced).norm()) < 0.35 * float(rounding)


def test_the_gradient_of_weights_passes_but_beyond_the_grid() -> None:
    args = PRESETS["int4_g32"].weights
    weight = torch.linspace(-1, 1, 64).view(2, 32).requires_grad_()
    scales = find_scales([weight.detach() * 0.5], args, "max", torch.float32)[0]
    points = lattice(scales, args, (2, 32))
    round_weight(weight, scales, args).sum().backward()
    low, high = code_range(4)
    units = points.in_steps(weight.detach())
    expected = ((units >= low - 0.5) & (units <= high + 0.5)).float()
    assert weight.grad is not None
    assert torch.equal(weight.grad, expected)
    assert 0 < float(expected.mean()) < 1


def test_the_gradient_of_learned_steps_is_that_of_lsq() -> None:
    """Equation 3 of arXiv:1902.08153, written out in float64; a step is its start times the exponential of a gain."""
    args = PRESETS["int4_g32"].weights
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(5))
    plain = torch.nn.Linear(64, 4, bias=False)
    plain.weight.data = weight
    scales = find_scales([weight * 0.6], args, "max", torch.float32)[0]
    module = FakeQuantLinear(plain, PRESETS["int4_g32"], scales, policy="learn")
    given = torch.randn(4, 64, generator=torch.Generator().manual_seed(6))
    (module.rounded() * given).sum().backward()
    step = scales.step().double()
    units = (weight.double().view(4, 2, 32) / step.unsqueeze(-1)).clamp(-8, 7)
    inside = (units > -8) & (units < 7)
    by_step = torch.where(inside, units.round() - units, units) * given.double().view(4, 2, 32)
    assert module.log_gain.grad is not None
    torch.testing.assert_close(module.log_gain.grad.double(), by_step.sum(-1) * step, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_inputs_stops_where_a_static_scale_clips() -> None:
    args = PRESETS["fp8"].activations
    assert args
    x = torch.linspace(-3, 3, 13).requires_grad_()
    round_activation(x[None], args, torch.tensor([1.0 / 448])).sum().backward()
    assert torch.equal(x.grad, (x.detach().abs() <= 1).float())
    dynamic = torch.linspace(-3, 3, 32).requires_grad_()
    token = PRESETS["fp8_dynamic"].activations
    assert token
    round_activation(dynamic[None], token, None).sum().backward()
    assert torch.equal(dynamic.grad, torch.ones(32))


def test_recomputed_scales_are_the_maxima_of_fused_layers_together(quantized: Quantize) -> None:
    student = Student(quantized("nvfp4_w4a16"))
    student.simulate("recompute")
    query, key, value = (student.linears[f"model.layers.0.self_attn.{name}_proj"] for name in "qkv")
    key.weight.data[0, 0] = 40.0
    weights = [one.weight.data for one in (query, key, value)]
    expected = find_scales(weights, PRESETS["nvfp4_w4a16"].weights, "max", torch.bfloat16)
    for module, scales in zip((query, key, value), expected, strict=True):
        assert torch.equal(module.scales().step(), scales.step())
    assert len({float(module.scales().global_scale or 0) for module in (query, key, value)}) == 1


def test_names_lead_back_to_the_checkpoint(quantized: Quantize) -> None:
    folder = quantized("int4")
    student = Student(folder)
    student.simulate("freeze")
    description = load_quantization(folder)
    assert description
    assert set(student.linears) == set(description.modules)
    plain = [name for name, _ in student.plain_parameters(0)]
    assert plain == ["model.layers.0.input_layernorm.weight", "model.layers.0.post_attention_layernorm.weight"]


@pytest.mark.parametrize("family", ["Gemma2", "Cohere"])
def test_a_head_is_found_in_the_type_that_a_teacher_computes_in(family: str, tiny_model: MakeModel) -> None:
    """Without one all logits of a batch are made at once."""
    head = find_head(Decoder(tiny_model(family), dtype=torch.bfloat16).load_all())
    assert head is not None
    assert head.transform is not None
