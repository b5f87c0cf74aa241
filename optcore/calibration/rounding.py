"""Weights of a layer to codes: scales for each fused group, then rounding, weights of one shape together.

Groups are spread over devices; where there are fewer groups, as with an asymmetric target, their weights are. A device
that is not where the layer is holds, beside the largest batch, of its share

    weights [N, K] as the layer has them  +  4 K^2 bytes an input for its Gram matrix (8 with an asymmetric target)

and the float32 results, until the last of them is done and they are brought back.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from optcore.algorithms.codes import decode, encode
from optcore.algorithms.gptq import gptq_batch
from optcore.algorithms.packing import pack
from optcore.algorithms.scales import Scales, find_scales, has_own_scales, weighing
from optcore.calibration.devices import each_on_its_own, shares
from optcore.calibration.digest import weight_digest
from optcore.calibration.statistics import InputStatistics
from optcore.kernels.quantize import Quantized, quantize_and_decode
from optcore.schemes import QuantArgs, Scheme
from optcore.streaming.free_memory import gpu_bytes

if TYPE_CHECKING:
    from optcore.techniques.ptq import Quantizing

_ASYMMETRY_tokens = 8
"""Calibration tokens for each input channel at which an asymmetric target counts half."""
_NO_TOKENS = "no calibration token reached it"


class Fused(NamedTuple):
    """Weights of a fused group that have one format, and in some formats one scale."""

    weights: dict[str, torch.Tensor]
    """By path in the layer."""
    scheme: Scheme
    found: InputStatistics
    """Of the input that they share."""

    def cost(self) -> float:
        """In multiplications: feedback goes from every column to every other one, which one factor tells; without a
        Gram matrix every value is looked at."""
        shapes = [weight.shape for weight in self.weights.values()]
        if self.found.gram_KK is None:
            return float(sum(rows * columns for rows, columns in shapes))
        return float(sum(rows * columns**2 + columns**3 for rows, columns in shapes))

    def parts(self) -> list["Fused"]:
        """What can be rounded on different devices: each weight, unless they share a scale."""
        if not has_own_scales(self.scheme.weights):
            return [self]
        return [self._replace(weights={path: weight}) for path, weight in self.weights.items()]

    def to(self, device: torch.device) -> "Fused":
        """On another device; itself where it is there."""
        weights = {path: weight.to(device) for path, weight in self.weights.items()}
        return Fused(weights, self.scheme, self.found.to(device))


class Rounding(NamedTuple):
    """A weight after rounding, and how it went."""

    stored: dict[str, torch.Tensor]
    """Packed codes and scales, by suffix."""
    weight_NK: torch.Tensor
    """What they stand for, float32."""
    digest: str
    loss: float | None = None
    fallback: str = ""

    def to(self, device: torch.device) -> "Rounding":
        """On another device, but for what is on the CPU, such as a shape."""
        stored = {name: tensor if tensor.is_cpu else tensor.to(device) for name, tensor in self.stored.items()}
        return self._replace(stored=stored, weight_NK=self.weight_NK.to(device))


def round_weights(
    groups: Sequence[Fused], technique: "Quantizing", dtype: torch.dtype, devices: Sequence[torch.device]
) -> dict[str, Rounding]:
    """Round the weights of groups that are on the first of some devices, by path; scales are stored in `dtype`.

    On CPUs the result does not depend on the devices. A GPU's library chooses how to add up a batched product by the
    number of weights in it, which does, and so may the last bits of what GPTQ asks of a column.
    """
    groups = groups if len(groups) >= len(devices) else [part for group in groups for part in group.parts()]
    parts = [share for share in shares([group.cost() for group in groups], len(devices)) if share]
    works = [
        partial(_on, device, [groups[place] for place in share], technique, dtype, devices[0])
        for device, share in zip(devices, parts, strict=False)
    ]
    return dict(pair for given in each_on_its_own(devices[: len(works)], works) for pair in given)


def _on(
    device: torch.device, groups: Sequence[Fused], technique: "Quantizing", dtype: torch.dtype, home: torch.device
) -> Iterator[tuple[str, Rounding]]:
    rounder = _Rounder(technique, dtype)
    for path, rounding in rounder.rounded([group.to(device) for group in groups]):
        yield path, rounding if device == home else rounding.to(home)


class Problem(NamedTuple):
    """A weight with scales that GPTQ is to round."""

    path: str
    weight_NK: torch.Tensor
    """As the layer has it: the float32 copy is made for its batch."""
    gram_KK: torch.Tensor
    cross_KK: torch.Tensor | None
    scales: Scales
    args: QuantArgs
    pull: float

    def kind(self) -> tuple[object, ...]:
        """Problems of one are solved as one.

        On the CPU only those that share a factor: batching saves launches, and it has none.
        """
        shared = id(self.gram_KK) if self.gram_KK.device.type == "cpu" else None
        return self.weight_NK.shape, self.args, self.pull > 0, shared

    def working_bytes(self) -> int:
        """What GPTQ takes for it: the matrix in order, damped, factored, as feedback and as coupling; the weight in
        order, its target, its rounded form, differences and steps."""
        rows, columns = self.weight_NK.shape
        return 4 * (6 * columns**2 + 7 * rows * columns)


class _Rounder:
    """On one device."""

    def __init__(self, technique: "Quantizing", dtype: torch.dtype) -> None:
        self._technique = technique
        self._dtype = dtype

    def rounded(self, groups: Sequence[Fused]) -> Iterator[tuple[str, Rounding]]:
        """Every weight by its path, in no order."""
        problems: list[Problem] = []
        for group in groups:
            if self._technique.rounding == "nearest" or group.found.gram_KK is None:
                yield from self._nearest(group)
            else:
                problems += self._problems(group, group.found.gram_KK)
        for batch in _batches(problems):
            yield from self._solved(batch)

    def _nearest(self, group: Fused) -> Iterator[tuple[str, Rounding]]:
        method, fallback = self._technique.scale_search, ""
        if method == "hessian" and group.found.importance_K is None:
            method, fallback = "mse", f"{_NO_TOKENS}: scales by plain squared error"
        elif self._technique.rounding != "nearest":
            fallback = f"{_NO_TOKENS}: rounded to nearest"
        args, importance_K = group.scheme.weights, group.found.importance_K
        weights = list(group.weights.values())
        if has_own_scales(args):
            weighing_K = weighing(method, importance_K)
            made = [quantize_and_decode(weight, args, method, self._dtype, weighing_K) for weight in weights]
        else:
            weights = [weight.float() for weight in weights]
            scales = find_scales(weights, args, method, self._dtype, importance_K)
            made = [_nearest(*parts, args) for parts in zip(weights, scales, strict=True)]
        for path, (stored, weight_NK) in zip(group.weights, made, strict=True):
            yield path, Rounding(stored, weight_NK, weight_digest(weight_NK), None, fallback)

    def _problems(self, group: Fused, gram_KK: torch.Tensor) -> Iterator[Problem]:
        args, found, pull = group.scheme.weights, group.found, self._pull(group.found)
        weights = [weight.float() for weight in group.weights.values()]
        scales = find_scales(weights, args, self._technique.scale_search, self._dtype, found.importance_K)
        for (path, weight), own in zip(group.weights.items(), scales, strict=True):
            yield Problem(path, weight, gram_KK, found.cross_KK, own, args, pull)

    def _pull(self, found: InputStatistics) -> float:
        """The asymmetry that the measurement supports.

        What few tokens say of the difference between two models is mostly noise, and it would be fitted. The first
        trial of a format has no second model beside it.
        """
        enough = found.tokens / (found.tokens + _ASYMMETRY_tokens * len(found.channel_amax_K))
        return 0.0 if found.cross_KK is None else enough * (self._technique.feedback.asymmetry or 0.0)

    def _solved(self, batch: Sequence[Problem]) -> Iterator[tuple[str, Rounding]]:
        args = batch[0].args
        weights = [problem.weight_NK.float() for problem in batch]
        crosses = [problem.cross_KK for problem in batch if problem.cross_KK is not None]
        results = gptq_batch(
            weights,
            [problem.gram_KK for problem in batch],
            [problem.scales for problem in batch],
            args,
            self._technique.feedback,
            crosses or None,
            [problem.pull for problem in batch],
            apart=batch[0].gram_KK.device.type == "cpu",
        )
        energies = [
            (weight_NK @ problem.gram_KK * weight_NK).sum() for weight_NK, problem in zip(weights, batch, strict=True)
        ]
        for problem, result, energy in zip(batch, results, torch.stack(energies).tolist(), strict=True):
            share = result.loss / energy if energy > 0 else 0.0
            said = "" if result.damping is not None else "the Hessian has no Cholesky factor: rounded to nearest"
            stored = pack(encode(result.weight_NK, result.scales, args), result.scales, args)
            loss = share if math.isfinite(share) else None
            yield problem.path, Rounding(stored, result.weight_NK, weight_digest(result.weight_NK), loss, said)


def _nearest(weight_NK: torch.Tensor, scales: Scales, args: QuantArgs) -> Quantized:
    codes_NK = encode(weight_NK, scales, args)  # of the weight itself: a small negative one keeps its sign
    return Quantized(pack(codes_NK, scales, args), decode(codes_NK, scales, args))


def _batches(problems: Sequence[Problem]) -> Iterator[Sequence[Problem]]:
    kinds: dict[tuple[object, ...], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind(), []).append(problem)
    for alike in kinds.values():
        at_once = _at_once(alike)
        yield from (alike[start : start + at_once] for start in range(0, len(alike), at_once))


def _at_once(alike: Sequence[Problem]) -> int:
    """How many of a kind a device has the memory for: a share of all it has, so that batches, and the last bits of
    their products, are the same every time, and less only where little is free."""
    device = alike[0].gram_KK.device
    if device.type != "cuda":
        return len(alike)
    room = min(torch.cuda.get_device_properties(device).total_memory / 32, gpu_bytes(device) / 4)
    return max(1, int(room / alike[0].working_bytes()))
