"""The processes that train one model together: one by default, or as many as torchrun started."""

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class Ranks:
    """This process's place among them."""

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.device = _device()
        if self.count > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    @property
    def is_first(self) -> bool:
        """Whether it is this process that speaks and writes."""
        return self.rank == 0

    def share(self, items: Sequence[int]) -> list[int]:
        """This process's items: every `count`-th."""
        return list(items[self.rank :: self.count])

    def whole(self, count: int) -> int:
        """The most of `count` items that all processes have equally many of: they compute in step."""
        return max(self.count, count - count % self.count)

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def shard(self, whole: nn.Module, layers: Sequence[nn.Module]) -> None:
        """Spread parameters over the processes (FSDP2): each layer is gathered while it computes.

        Gradients are added, not averaged: losses are sums, divided by the tokens of all processes.
        """
        if self.count == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.count,))
        for module in (*layers, whole):
            fully_shard(module, mesh=mesh).set_gradient_divide_factor(1.0)

    def leave(self) -> None:
        """End the group, so that a process that goes on computing holds nobody up."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()


def full(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as a whole, gathered where it is spread over processes; every process must ask."""
    gather: Any = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor


def put(target: torch.Tensor, value: torch.Tensor) -> None:
    """Overwrite a tensor, of which each process may hold a part, with a whole one that each process has."""
    with torch.no_grad():
        if hasattr(target, "full_tensor"):
            from torch.distributed.tensor import distribute_tensor

            spread: Any = target
            value = distribute_tensor(
                value.to(spread.device, spread.dtype), spread.device_mesh, spread.placements, src_data_rank=None
            )
        target.copy_(value)


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
