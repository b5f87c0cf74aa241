"""Fake quantization by kernels where the engine uses it: gradients, launches, and values that are no numbers."""

import numpy as np
import pytest
import torch
from fixtures.kernels import Call, calls, compare

from optcore.algorithms.kv_cache import fake_quantize_states, rotated
from optcore.algorithms.scales import find_scales
from optcore.kernels.activations import fake_quantize_activation
from optcore.kernels.counting import counting
from optcore.kernels.dispatch import SWITCH
from optcore.kernels.hadamard import hadamard
from optcore.schemes import KV_CACHE_PRESETS, PRESETS
from optcore.training.fake_quant import FakeQuantLinear, ScalePolicy
from optcore.training.straight_through import round_activation

ROWS, COLUMNS = 24, 200
POISONED_calls = ("activations nvfp4 3 x 1000 torch.bfloat16", "weights int8 3 x 1000", "passed 63 torch.float32")
POISONED = [call for call in calls() if call.name in POISONED_calls]


@pytest.mark.parametrize("policy", ["freeze", "recompute"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_trains_as_by_the_definition(
    policy: ScalePolicy, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for switch in ("torch", "triton"):
        monkeypatch.setenv(SWITCH, switch)
        layer, x = _layer(policy), torch.ones(3, COLUMNS, dtype=dtype, requires_grad=True)
        layer(x).float().sum().backward()
        assert layer.weight.grad is not None
        found[switch] = layer.rounded(dtype).detach(), layer.weight.grad, x.grad
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found.values(), strict=True))
    assert (found["torch"][1] == 0).any() or policy == "recompute"


def test_a_layer_reads_its_weight_once_and_keeps_a_bit_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "triton")
    layer, x = _layer("freeze"), torch.ones(3, COLUMNS, dtype=torch.bfloat16)
    with counting() as counts:
        layer(x).float().sum().backward()
    assert counts.launches == {"round": 1, "fake_quantize": 1, "pass": 1}
    bits, scales = ROWS * COLUMNS // 8, 2 * ROWS
    assert counts.bytes["round"] == (4 + 2) * ROWS * COLUMNS + bits + scales
    assert counts.bytes["fake_quantize"] == (2 + 2) * 3 * COLUMNS
    assert counts.bytes["pass"] == (2 + 4) * ROWS * COLUMNS + bits


def test_activations_come_as_an_engine_computes_them() -> None:
    """Not a bit beside the grid, which x + (rounded - x) would be in bfloat16."""
    args, x = PRESETS["nvfp4"].activations, torch.randn(5, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    assert args
    divisor = torch.tensor([200.0])
    assert torch.equal(round_activation(x, args, divisor), fake_quantize_activation(x, args, divisor))


@pytest.mark.parametrize("switch", ["torch", "triton"])
@pytest.mark.parametrize("name", ["fp8", "int8", "nvfp4", "nvfp4_affine"])
def test_keys_are_rotated_in_the_same_pass(name: str, switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, switch)
    args, keys = KV_CACHE_PRESETS[name], torch.randn(1, 2, 3, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
    scale, bias = torch.tensor([0.02 if name == "fp8" else 300.0]), torch.full((1, 2, 1, 48), 0.1)
    given = (args, scale, bias if name == "nvfp4_affine" else None)
    assert torch.equal(fake_quantize_states(keys, *given, rotate=True), fake_quantize_states(rotated(keys), *given))


@pytest.mark.parametrize("name", ["fp8_dynamic", "int8", "nvfp4", "mxfp4", "fp8"])
def test_what_is_no_number_stays_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "triton")
    x, args = torch.ones(2, 64), PRESETS[name].activations
    assert args
    x[0, 3], x[1, 5] = torch.nan, torch.inf
    with np.errstate(all="ignore"):  # the interpreter's own
        rounded = fake_quantize_activation(x, args, torch.tensor([1.0]))
    assert rounded[0, 3].isnan()
    theirs = fake_quantize_activation.definition(x[1:], args, torch.tensor([1.0]))
    assert torch.equal(rounded[1].nan_to_num(nan=77.0), theirs[0].nan_to_num(nan=77.0))


@pytest.mark.parametrize("call", POISONED, ids=lambda call: call.name)
def test_every_value_of_a_result_is_written(call: Call) -> None:
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # with NaN
    try:
        assert compare(call, "cpu", call.arguments()) == []
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before
        torch.use_deterministic_algorithms(False)


def test_gradients_go_through_a_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "triton")
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(3), requires_grad=True)
    hadamard(x, 16)[:, 0].sum().backward()
    assert torch.equal(x.grad, torch.full((2, 16), 0.25))


def _layer(policy: ScalePolicy) -> FakeQuantLinear:
    """Some of its weights lie beyond the grid of its own scales."""
    plain = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    weight_NK = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    scales = find_scales([weight_NK * 0.7], PRESETS["int8"].weights, "max", torch.bfloat16)[0]
    plain.weight.data = weight_NK
    return FakeQuantLinear(plain, PRESETS["int8"], scales, policy=policy)
