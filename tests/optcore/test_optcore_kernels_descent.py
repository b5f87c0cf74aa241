"""Rounding by blocks of columns as kernels: how well, in how many launches, and how often the host waits meanwhile."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from optcore.algorithms.gptq import Rounded, gptq_batch
from optcore.algorithms.scales import find_scales
from optcore.kernels.counting import counting
from optcore.kernels.descent import BLOCK_columns
from optcore.kernels.dispatch import SWITCH
from optcore.schemes import QuantArgs
from optcore.techniques.options import Gptq

ARGS = QuantArgs(bits=4, type="int", strategy="channel")
# Operations whose result the host cannot go on without.
_WAITING = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}


class _Waits(TorchDispatchMode):
    """How often the host has to wait for a device, were the tensors on one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        to_list = torch.Tensor.tolist

        def counted(tensor: torch.Tensor) -> Any:
            self.count += 1
            return to_list(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _WAITING or any(_is_mask(one) for one in args[1:2] if func is torch.ops.aten.index.Tensor):
            self.count += 1
        return func(*args, **(kwargs or {}))


def _is_mask(index: list[torch.Tensor | None]) -> bool:
    return any(one is not None and one.dtype == torch.bool for one in index)


def _round(
    experts: int, columns: int, options: Gptq, watched: AbstractContextManager[Any] | None = None
) -> list[Rounded]:
    random = torch.Generator().manual_seed(columns)
    weight_ENK = torch.randn(experts, 4, columns, generator=random)
    mixing_EKK = torch.eye(columns) + 0.3 * torch.randn(experts, columns, columns, generator=random)
    scales = [find_scales([weight_NK], ARGS, "mse", torch.bfloat16)[0] for weight_NK in weight_ENK]
    with watched or nullcontext():
        return gptq_batch(weight_ENK, mixing_EKK.mT @ mixing_EKK, scales, ARGS, options)


@pytest.mark.parametrize(("experts", "columns", "sweeps"), [(2, 130, 0), (1, 20, 1)])
def test_blocks_are_as_good_by_kernels_in_one_launch_each_for_all_experts(
    experts: int, columns: int, sweeps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Gptq(sweeps=sweeps)
    plain = _round(experts, columns, options)
    monkeypatch.setenv(SWITCH, "triton")
    with counting() as counts:
        launched = _round(experts, columns, options)
    assert counts.launches["round_columns"] == -(-columns // BLOCK_columns) * (1 + sweeps)
    assert [one.loss for one in launched] == pytest.approx([one.loss for one in plain], rel=1e-3)
    assert all(one.loss < one.nearest_loss for one in launched)


@pytest.mark.parametrize("experts", [1, 3])
def test_the_host_waits_once_for_the_factors_and_once_for_the_losses(
    experts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = _Waits(monkeypatch)
    _round(experts, 64, Gptq(sweeps=2), waits)
    assert waits.count == 2
