"""The processes that train one model together: one by default, or as many as a stage, or torchrun, started.

Parameters, gradients and the optimizer are spread over them (FSDP2), and a layer is gathered while it computes. So all
of them must call the model equally often, whatever each has to do, and gather what they save together.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from optcore.errors import RecipeError
from optcore.gang import STORE

_LONGEST_wait = timedelta(hours=6)
"""For each other: while one writes a checkpoint, all wait. One that has died is noticed by who started it."""


class Ranks:
    """This process's place among them."""

    def __init__(self, batch: int | None = None) -> None:
        """Raises `RecipeError` where the processes cannot share steps of `batch` windows evenly, or lack a GPU."""
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if batch is not None and batch % self.count:
            raise RecipeError(
                f"{self.count} processes cannot share {batch} windows a step evenly",
                remedy="let `processes` divide `batch`",
                field="/chain",
            )
        self.device = _device()
        if self.count > 1 and not dist.is_initialized():
            _join(self.device, self.rank, self.count)

    @property
    def is_first(self) -> bool:
        """Whether it is this process that speaks and writes."""
        return self.rank == 0

    def share(self, items: Sequence[int]) -> list[int]:
        """This process's items: every `count`-th."""
        return list(items[self.rank :: self.count])

    def in_step(self, parts: Sequence[list[int]], items: int, size: int) -> list[list[int]]:
        """This process's `parts`, and empty ones behind them until it has as many as any: they compute in step.

        `items` is how many all processes share, `size` how many a part holds.
        """
        most = math.ceil(math.ceil(items / self.count) / size)
        return [*parts, *([] for _ in range(most - len(parts)))]

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
            fully_shard(module, mesh=mesh)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no sum that is multiplied first

    @contextmanager
    def gathered(self, module: nn.Module) -> Iterator[None]:
        """Parameters of a module that was sharded are whole within; every process must enter."""
        if self.count == 1:
            yield
            return
        sharded: Any = module
        sharded.unshard()
        try:
            yield
        finally:
            sharded.reshard()

    def spread(self, module: nn.Module) -> None:
        """Give back what calls without a backward pass left gathered of a module that was sharded.

        The outermost one keeps its own parameters (embeddings, last norm, head) for the backward pass: until then its
        modules hold copies, which know nothing of what is written to the parameters.
        """
        if self.count > 1:
            sharded: Any = module
            sharded.reshard()

    def leave(self) -> None:
        """End the group, so that a process that goes on computing holds nobody up."""
        if self.count > 1 and dist.is_initialized():
            dist.destroy_process_group()


def full(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as a whole, gathered where it is spread over processes; every process must ask."""
    gather: Any = getattr(tensor, "full_tensor", None)
    return gather() if gather else tensor


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor, in its memory: all of one that is not spread."""
    local: Any = getattr(tensor, "to_local", None)
    return local() if local else tensor


def spread_like(target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A whole tensor, which each process has, spread over processes as another of its shape is."""
    if not hasattr(target, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    like: Any = target
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def put(target: torch.Tensor, value: torch.Tensor) -> None:
    """Overwrite a tensor, of which each process may hold a part, with a whole one that each process has."""
    with torch.no_grad():
        target.copy_(spread_like(target, value.to(target.device, target.dtype)))


def _join(device: torch.device, rank: int, count: int) -> None:
    store = os.environ.get(STORE)
    is_gpu = device.type == "cuda"
    dist.init_process_group(
        "nccl" if is_gpu else "gloo",
        init_method=f"file://{store}" if store else "env://",
        rank=rank,
        world_size=count,
        timeout=_LONGEST_wait,
        device_id=device if is_gpu else None,
    )


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local, present = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= present:
        raise RecipeError(
            f"process {local} has no GPU: {present} are visible", remedy="ask for fewer `processes`", field="/chain"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)
