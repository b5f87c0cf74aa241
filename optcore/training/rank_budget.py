"""AdaLoRA's budget: how many ranks there are at a step, and which of all layers' they are (arXiv:2303.10512).

The arithmetic is PEFT's. What it remembers between steps (averages of each weight's importance, which ranks are left)
is saved with the parameters, so that a run that was killed takes away the same ranks as one that was not.
"""

from collections.abc import Mapping

import torch
from torch import nn

from optcore.errors import RecipeError
from optcore.techniques.adapters import Lora
from optcore.training.adapters import NAME, library
from optcore.training.student import Student

_KEPT = "kept"
_AVERAGES = ("exp_avg_ipt", "exp_avg_unc")


def budget_of(student: Student, settings: Lora, steps: int, processes: int = 1) -> "RankBudget | None":
    """The budget of a student's adapters, where they have one. Raises `RecipeError` for several processes."""
    if settings.variant != "adalora":
        return None
    if processes > 1:
        raise RecipeError(
            "adalora compares the ranks of all layers, which are spread over several processes",
            remedy="choose `variant: lora`, or one process",
            field="/chain",
        )
    return RankBudget(student.layers, settings, steps)


class RankBudget:
    """The ranks of all adapters in some layers, over a number of steps."""

    def __init__(self, layers: nn.ModuleList, settings: Lora, steps: int) -> None:
        library()
        from peft import AdaLoraConfig
        from peft.tuners.adalora.layer import RankAllocator

        self.steps = steps
        self.fixed_at = steps - int(settings.final * steps)
        """The step after which no rank goes or comes back."""
        self._layers = layers
        self._weight = settings.orthogonal
        config = AdaLoraConfig(
            init_r=settings.first_rank,
            target_r=settings.rank,
            tinit=int(settings.warm * steps),
            tfinal=steps - self.fixed_at,
            deltaT=settings.interval,
            total_step=steps,
        )
        self._allocator = RankAllocator(layers, config, NAME)
        self._kept: dict[str, list[bool]] = {}

    @property
    def target(self) -> int:
        """Ranks that are left at the end."""
        return int(self._allocator.target_bgt)

    @property
    def ranks(self) -> int:
        """Ranks that are not zero now."""
        return sum(int(value.count_nonzero()) for name, value in self._parameters() if ".lora_E." in name)

    def penalty(self) -> torch.Tensor:
        """How far directions are from orthogonal to each other: the mean of ||P^T P - I|| times its weight."""
        sizes = [_deviation(value if ".lora_A." in name else value.T) for name, value in self._directions()]
        return self._weight * torch.stack(sizes).mean()

    def update(self, step: int) -> None:
        """Take ranks away where it is due; call it after the optimizer's step number `step`, counted from 1."""
        if step > self.fixed_at:
            self._allocator.mask_using_rank_pattern(self._layers, self._kept)
            return
        for _, value in self._parameters():
            if value.grad is None:  # an expert without a token
                value.grad = torch.zeros_like(value)
        self._allocator.update_ipt(self._layers)
        budget, is_due = self._allocator.budget_schedule(step)
        if is_due or step == self.fixed_at:
            self._kept = self._allocator.mask_to_budget(self._layers, budget)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is remembered, by name."""
        kept = {f"{_KEPT}.{name}": torch.tensor(mask) for name, mask in self._kept.items()}
        averages = {kind: getattr(self._allocator, kind) for kind in _AVERAGES}
        return kept | {f"{kind}.{name}": value for kind, named in averages.items() for name, value in named.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from what was remembered."""
        parameters = dict(self._parameters())
        for key, tensor in tensors.items():
            kind, _, name = key.partition(".")
            if kind == _KEPT:
                self._kept[name] = tensor.tolist()
            else:
                getattr(self._allocator, kind)[name] = tensor.to(parameters[name].device)
                self._allocator.ipt[name] = torch.zeros_like(parameters[name])

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, value) for name, value in self._layers.named_parameters() if ".lora_" in name]

    def _directions(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, value) for name, value in self._parameters() if ".lora_E." not in name]


def _deviation(rows_RK: torch.Tensor) -> torch.Tensor:
    return torch.linalg.norm(rows_RK @ rows_RK.T - torch.eye(len(rows_RK), device=rows_RK.device))
