"""What training holds in memory, from counts alone: an estimate says it, and the engine refuses by it.

Activations are not in it: gradient checkpointing and `micro_batch` make them as small as need be.
"""

from collections.abc import Sequence
from typing import NamedTuple

from optcore.estimate.facts import Tensor
from optcore.schemes import PRESETS, stored_bits
from optcore.techniques.quantization_aware import QuantizationAware
from optcore.techniques.training import Training

MASTER_bytes, GRADIENT_bytes, MOMENTS_bytes = 4, 4, 8
_NF4 = PRESETS["nf4"].weights
_NF4_bytes = stored_bits(_NF4, (4096, 4096)) / 8 / 4096**2
"""What a weight takes."""
_GAIN_weights = 128
"""That share a scale which trains, or a vector of a norm: few of either beside the weights."""


class Footprint(NamedTuple):
    """Of a student in memory as a whole, float32 weights, gradients and AdamW's moments, and of whom it asks."""

    parameters: float
    """Of the student."""
    moving: float
    """Parameters that train, adapters among them."""
    weights: float
    """Bytes that all of the student's are held in, adapters among them."""
    teacher: float = 0.0
    """Parameters of the model that is asked meanwhile: whole in each process, in bfloat16 on a GPU."""
    forms: float = 0.0
    """Bytes that each process holds to keep a form of the weights."""
    processes: int = 1

    @property
    def gpu(self) -> float:
        """Bytes on each GPU: a process has loaded the whole student before all of them spread it."""
        return max(self.weights, self._part) + 2 * self.teacher

    @property
    def checkpoint(self) -> float:
        """Bytes of the host that one process brings together for a checkpoint, from GPUs or from the others."""
        return self.moving * (MASTER_bytes + MOMENTS_bytes)

    def host(self, together: int) -> float:
        """Bytes of so many of its processes where there is no GPU, one of them with what it brings together."""
        brought = self.checkpoint if self.processes > 1 else 0.0
        return max(together * self.weights, together * self._part + brought) + together * 4 * self.teacher

    @property
    def _part(self) -> float:
        """Bytes of one process once the student is spread."""
        moved = self.moving * (GRADIENT_bytes + MOMENTS_bytes)
        return (self.weights + moved) / self.processes + self.forms


def footprint(
    technique: Training, student: Sequence[Tensor], teacher: float = 0.0, *, forms: float = 0.0, processes: int = 1
) -> Footprint:
    """Of a technique on a student with these tensors; of `scope: block` of one layer by itself, which nobody teaches
    but the dense one beside it."""
    if _scope(technique) == "block":
        layer = largest_layer(student)
        return Footprint(layer, layer, 2 * MASTER_bytes * layer)  # as it trains, and as it was best
    parameters, moving = sum(one.elements for one in student), moving_parameters(technique, student)
    added = 0.0 if _scope(technique) == "full" else moving
    weights = MASTER_bytes * (parameters + added)
    if _scope(technique) == "lora" and technique.lora.base == "nf4":  # type: ignore[attr-defined]
        weights -= (MASTER_bytes - _NF4_bytes) * sum(one.elements for one in student if _takes_codes(one))
    return Footprint(parameters, moving, weights, teacher, forms, processes)


def asked_alone(teacher: float) -> Footprint:
    """Of a model that says what others learn, before they do."""
    return Footprint(0, 0, 0, teacher)


def beside(target: float, draft: float) -> Footprint:
    """Of a draft, all of which trains, and of its target or of what is read of that."""
    return Footprint(draft, draft, MASTER_bytes * draft, teacher=target)


def moving_parameters(technique: Training, student: Sequence[Tensor]) -> float:
    """That train; of `scope: block` at any one time."""
    scope, linears = _scope(technique), [one for one in student if one.role == "linear"]
    if scope == "lora":
        rank = technique.lora.first_rank  # type: ignore[attr-defined]
        return float(sum(one.copies * rank * sum(one.matrix) for one in linears))
    if scope == "block":
        return float(largest_layer(student))
    of_all = float(sum(one.elements for one in student))
    if scope in ("scales", "none"):
        return of_all / _GAIN_weights
    return float(sum(one.elements for one in linears)) if isinstance(technique, QuantizationAware) else of_all


def largest_layer(tensors: Sequence[Tensor]) -> int:
    """Parameters of the layer that has most."""
    sums: dict[int, int] = {}
    for one in tensors:
        if one.layer >= 0:
            sums[one.layer] = sums.get(one.layer, 0) + one.elements
    return max(sums.values(), default=0)


def _scope(technique: Training) -> str:
    return str(getattr(technique, "scope", "full"))


def _takes_codes(tensor: Tensor) -> bool:
    """Whether a frozen linear's inputs make whole blocks (`quantized_base`)."""
    return tensor.role == "linear" and tensor.matrix[1] % (_NF4.group_size or 1) == 0
