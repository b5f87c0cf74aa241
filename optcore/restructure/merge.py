"""Checkpoints of one architecture merged tensor by tensor: no model is built, one tensor of each is in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from optcore.algorithms.merging import agreed, dropped, linear, slerp, summed, trimmed
from optcore.errors import BadCheckpoint
from optcore.frozen import digest_of
from optcore.links import link_companions
from optcore.restructure.alike import Alike, check_alike
from optcore.restructure.sweep import sweep
from optcore.streaming.reader import TensorReader
from optcore.streaming.writer import TensorWriter

if TYPE_CHECKING:
    import torch

    from optcore.run import Run
    from optcore.techniques.merge import Merge


def merge_checkpoints(run: "Run", technique: "Merge") -> None:
    """Write `run.checkpoint` merged with `run.models` to `run.out`, under the names and in the types of the first.

    Raises `RecipeError` or `VocabularyMismatch` for models that do not fit, before anything is written.
    """
    place = f"{run.place}/others"
    alike = [check_alike(run.checkpoint, other, f"{place}/{at}/model") for at, other in enumerate(run.models)]
    merging = _Merging(run, frozenset().union(*(each.redundant for each in alike)))
    run.results["merge"] = {"method": technique.method, "models": len(alike) + 1, "tensors": len(merging.names)}
    if technique.sweep:
        sweep(run, technique, merging.write)
    else:
        merging.write(technique, run.out, lambda done: run.progress("searching", done, len(merging.names)))
    _tell(run, technique, alike)
    run.notice(f"{technique.summary}: {len(merging.names)} tensors")


class _Merging:
    """The models of a run, ready to be merged one way or another."""

    def __init__(self, run: "Run", redundant: frozenset[str]) -> None:
        self._run = run
        self._own, self._others = TensorReader(run.checkpoint), [TensorReader(other) for other in run.models]
        self.names = [name for name in self._own.names if name not in redundant]

    def write(self, technique: "Merge", out: Path, written: Callable[[int], None] = lambda count: None) -> None:
        """Write one merge of them; `written` is told how many tensors are."""
        writer = TensorWriter(out)
        for done, name in enumerate(self.names, start=1):
            tensor = self._own.tensor(name)
            if tensor.is_floating_point():
                others = [each.tensor(name).float() for each in self._others]
                merged = _merged(technique, name, tensor.float(), others, self._run.seed)
                tensor = _finite(merged.to(tensor.dtype), name, f"{self._run.place}/others")
            writer.add(name, tensor)
            written(done)
        writer.close()
        link_companions(self._run.checkpoint, out)


def _merged(
    technique: "Merge", name: str, own: "torch.Tensor", others: "list[torch.Tensor]", seed: int
) -> "torch.Tensor":
    """One tensor of all models, float32."""
    weights = [other.weight for other in technique.others]
    if technique.method == "linear":
        return linear([own, *others], [technique.weight, *weights], technique.divides)
    if technique.method == "slerp":
        return slerp(own, others[0], technique.t)
    deltas = [other - own for other in others]
    for at, entry in enumerate(technique.others):
        if technique.method == "ties":
            deltas[at] = trimmed(deltas[at], entry.density)
        elif technique.method.startswith("dare"):
            drawn = int(digest_of([seed, at, name])[:15], 16)  # by name: the same in whatever files tensors lie
            deltas[at] = dropped(deltas[at], entry.density, drawn)
    combine = agreed if technique.method.endswith("ties") else summed
    return own + technique.scale * combine(deltas, weights, technique.divides)


def _finite(tensor: "torch.Tensor", name: str, place: str) -> "torch.Tensor":
    if tensor.isfinite().all():
        return tensor
    raise BadCheckpoint(
        f"{name} of the merged model holds values that are not finite",
        remedy="look for NaN in the models that are merged, or choose smaller weights",
        field=place,
    )


def _tell(run: "Run", technique: "Merge", alike: list[Alike]) -> None:
    for other, each in zip(technique.others, alike, strict=True):
        if each.differing:
            run.notice(
                f"{other.model.id or run.models[alike.index(each)].name} has other settings in config.json "
                f"({', '.join(each.differing)}); the chain's model keeps its own"
            )
