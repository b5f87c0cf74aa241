"""Where training is, on disk: a killed process goes on from the last checkpoint as if nothing had happened.

Each checkpoint is a folder with `state.safetensors` and `state.json`, complete under its name or not there. A new one
is written before the old one goes, so a full disk costs what was done since, and no more.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file, save_file

from optcore.durable import settle
from optcore.frozen import Frozen
from optcore.training.ranks import Ranks, full, put

_STATE, _TENSORS = "state.json", "state.safetensors"
_EXTRA = "extra."
_MOMENTS = ("exp_avg", "exp_avg_sq")
_COUNT = "step"
"""Steps that a parameter had a gradient at: fewer than were done, where a loss came to it late."""


class Measured(Frozen):
    """A validation."""

    step: int
    values: dict[str, float]


class State(Frozen):
    """Everything but tensors."""

    step: int = 0
    """Steps that are done."""
    losses: tuple[tuple[int, float], ...] = ()
    """Step and mean loss a token, of steps that were noted."""
    measured: tuple[Measured, ...] = ()
    """Validations, the untrained start first."""
    best: int = 0
    """Step of the best parameters."""


class Checkpoints:
    """The checkpoints of one stage: the last one, and the best parameters so far."""

    def __init__(self, folder: Path, parameters: dict[str, torch.nn.Parameter], ranks: Ranks) -> None:
        self._folder = folder
        self._parameters = parameters
        self._ranks = ranks
        self.extra: dict[str, torch.Tensor] = {}
        """Tensors besides the parameters that were loaded."""
        self._named = ""
        """The best parameters by the last checkpoint: what a killed run reads."""

    def save(
        self, state: State, optimizer: torch.optim.Optimizer, extra: Mapping[str, torch.Tensor] = MappingProxyType({})
    ) -> None:
        """Write a checkpoint, then remove the one before it and what it named. Every process must call it."""
        tensors = self._parameter_tensors()
        for name, value in self._parameters.items():
            own = optimizer.state.get(value, {})
            tensors |= self._gathered({f"{kind}.{name}": own[kind] for kind in (*_MOMENTS, _COUNT) if kind in own})
        tensors |= {f"{_EXTRA}{name}": value for name, value in extra.items()}
        self._write(f"step-{state.step:08d}", tensors, state)
        self._forget("step-*", {f"step-{state.step:08d}"})
        self._named = _best(state)
        self._forget("best-*", {self._named})

    def save_best(self, state: State) -> None:
        """Keep the parameters as they are now, as the best ones. Every process must call it.

        Those that were so before go, but for what the last checkpoint names: two copies are on the disk at most.
        """
        self._write(_best(state), self._parameter_tensors(), state)
        self._forget("best-*", {_best(state), self._named})

    def load(self, optimizer: torch.optim.Optimizer) -> State | None:
        """Parameters and optimizer as they were at the last checkpoint, and its state; None where there is none."""
        found = sorted(path for path in self._folder.glob(f"step-*/{_STATE}") if path.parent.suffix != ".part")
        if not found:
            return None
        state = State.model_validate_json(found[-1].read_text())
        self._named = _best(state)
        tensors = load_file(found[-1].parent / _TENSORS)
        self.extra = {name.removeprefix(_EXTRA): one for name, one in tensors.items() if name.startswith(_EXTRA)}
        for name, value in self._parameters.items():
            put(value, tensors[f"parameter.{name}"])
            if f"{_MOMENTS[0]}.{name}" in tensors:
                own = optimizer.state[value]
                own[_COUNT] = tensors[f"{_COUNT}.{name}"]
                for kind in _MOMENTS:
                    own[kind] = torch.zeros_like(value, memory_format=torch.preserve_format)
                    put(own[kind], tensors[f"{kind}.{name}"])
        return state

    def load_best(self, state: State) -> None:
        """Set the parameters to the best ones."""
        tensors = load_file(self._folder / _best(state) / _TENSORS)
        for name, value in self._parameters.items():
            put(value, tensors[f"parameter.{name}"])

    def _parameter_tensors(self) -> dict[str, torch.Tensor]:
        return self._gathered({f"parameter.{name}": value for name, value in self._parameters.items()})

    def _gathered(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Whole tensors on the CPU for the process that writes, one after the other; none for the others."""
        whole = ((name, full(tensor.detach())) for name, tensor in tensors.items())
        return {name: tensor.cpu() for name, tensor in whole if self._ranks.is_first}

    def _write(self, name: str, tensors: dict[str, torch.Tensor], state: State) -> None:
        if self._ranks.is_first:
            part = self._folder / f"{name}.part"
            try:
                _write_whole(part, self._folder / name, tensors, state)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)  # what is left of a disk is for the checkpoint that is whole
                raise
        self._ranks.wait()

    def _forget(self, pattern: str, kept: set[str]) -> None:
        if self._ranks.is_first:
            for old in self._folder.glob(pattern):
                if old.name not in kept:
                    shutil.rmtree(old, ignore_errors=True)


def _best(state: State) -> str:
    return f"best-{state.best:08d}"


def _write_whole(part: Path, path: Path, tensors: dict[str, torch.Tensor], state: State) -> None:
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part / _TENSORS)
    (part / _STATE).write_text(state.model_dump_json())
    shutil.rmtree(path, ignore_errors=True)
    settle(part, path)
