"""What stands in for modelopt's CUDA kernels agrees with our formats, and with modelopt's own export."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.peers.block_kernels import _dynamic, _static
from benchmarks.peers.venvs import peer_python
from optcore.algorithms.activations import static_scale
from optcore.kernels.activations import fake_quantize_activation
from optcore.schemes import PRESETS

ROOT = Path(__file__).parents[2]

AGAINST_EXPORT = """
import torch
from benchmarks.peers.block_kernels import _dynamic
from modelopt.torch.quantization.qtensor import NVFP4QTensor
weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(3))
packed, scale, scale_2 = NVFP4QTensor.quantize(weight, 16)
own = packed.dequantize(dtype=torch.float32, scale=scale, double_scale=scale_2, block_sizes={-1: 16})
torch.testing.assert_close(_dynamic(weight, 16, weight.abs().max(), 4, 2, 8, 4), own, rtol=1e-6, atol=0)
print("equal")
"""


def _values() -> torch.Tensor:
    x = torch.randn(32, 128, generator=torch.Generator().manual_seed(1))
    x[3, :32] = 0
    return x


def test_nvfp4_agrees_with_ours() -> None:
    x = _values()
    args = PRESETS["nvfp4"].activations
    assert args is not None
    amax = x.abs().max()
    ours = fake_quantize_activation(x, args, static_scale(amax.item(), args, torch.float32))
    torch.testing.assert_close(_dynamic(x, 16, amax, 4, 2, 8, 4), ours, rtol=1e-5, atol=0)
    blocks_amax = x.unflatten(-1, (-1, 16)).abs().amax(-1)
    torch.testing.assert_close(_static(x, blocks_amax, amax, True, 448.0), ours, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("bits", "exponent_bits", "most"), [(4, 2, 6.0), (8, 4, 448.0)])
def test_mx_steps_are_the_smallest_power_of_two_that_does_not_clip(bits: int, exponent_bits: int, most: float) -> None:
    x = _values()
    blocks, rounded = (
        values.unflatten(-1, (-1, 32)) for values in (x, _dynamic(x, 32, None, bits, exponent_bits, 8, 8))
    )
    powers = torch.exp2(torch.arange(-126.0, 10))
    step = powers[torch.searchsorted(powers * most, blocks.abs().amax(-1, keepdim=True))]  # the first that reaches it
    x_in_steps, in_steps = blocks / step, rounded / step  # exactly: a step is a power of two
    assert (in_steps.abs() <= most).all()
    whole = in_steps / _spacing(in_steps, bits, exponent_bits)
    assert torch.equal(whole, whole.round())  # on the grid
    assert ((in_steps - x_in_steps).abs() <= _spacing(x_in_steps, bits, exponent_bits) / 2).all()  # and the nearest
    assert torch.equal(rounded[3, 0], torch.zeros(32))


def _spacing(values: torch.Tensor, bits: int, exponent_bits: int) -> torch.Tensor:
    """Distance of the floating-point numbers around each value: OCP Microscaling Formats v1.0, 5.3."""
    smallest_exponent = 2 - 2 ** (exponent_bits - 1)  # below it numbers are subnormal, at the same distance
    exponent = torch.frexp(values).exponent - 1
    return torch.exp2(exponent.clamp(min=smallest_exponent) - (bits - 1 - exponent_bits))


def test_nvfp4_agrees_with_modelopts_own_export() -> None:
    python = peer_python("modelopt")
    if python is None:
        pytest.skip("modelopt is not installed below .lathe/peers; `python3 dev.py bench-ptq --only modelopt` does it")
    command = [python, "-c", AGAINST_EXPORT]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd="/tmp")
    assert done.stdout.strip().endswith("equal"), done.stderr[-2000:]
