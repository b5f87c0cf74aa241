"""A checkpoint whose neighbouring decoder layers have the same matrices."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from optcore.errors import RecipeError
from optcore.links import link_companions
from optcore.restructure.influence import influences
from optcore.streaming.decoder import Decoder
from optcore.streaming.reader import TensorReader
from optcore.streaming.writer import TensorWriter
from optcore.tied import NOTE, Tied

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.tie_layers import TieLayers

Layers = tuple[int, ...]
"""Layers that follow each other."""


@torch.no_grad()
def tie_checkpoint(run: "Run", technique: "TieLayers") -> None:
    """Write `run.checkpoint` to `run.out` with the matrices of some layers made equal, and `tied.json`.

    Raises `RecipeError`, before any text is read, for layers that are not there, not alike, or too few.
    """
    decoder = Decoder(run.checkpoint)
    runs, scores = _runs(run, decoder, technique)
    groups = tuple(names for layers in runs for names in _columns(decoder, layers))
    _write(run, decoder.reader, groups, technique.value)
    Tied(value=technique.value, runs=runs, tensors=groups).save(run.out)
    run.results["tied"] = {"runs": runs, "influence": scores}
    said = "; ".join(f"{layers[0]} to {layers[-1]}" for layers in runs)
    run.notice(f"layers that are one: {said or 'none'}, of {len(decoder)}, counted from 0. {NOTE}")


def _columns(decoder: Decoder, layers: Layers) -> Iterator[tuple[str, ...]]:
    """For each matrix of a layer, its name in each of the layers."""
    return zip(*(_matrices(decoder, index).values() for index in layers), strict=True)


def joined(ties: Sequence[int]) -> tuple[Layers, ...]:
    """Runs of layers, of ties given by the number of the earlier layer."""
    runs: list[list[int]] = []
    for tie in sorted(ties):
        if runs and runs[-1][-1] == tie:
            runs[-1].append(tie + 1)
        else:
            runs.append([tie, tie + 1])
    return tuple(map(tuple, runs))


def _runs(run: "Run", decoder: Decoder, technique: "TieLayers") -> tuple[tuple[Layers, ...], list[float]]:
    """Runs of layers to tie, and how much states turn over each pair of layers, where that was asked."""
    allowed = _allowed(decoder, ends=technique.ends)
    if technique.runs and technique.order == "influence":
        ties = [tie for first, last in technique.runs for tie in range(first, last)]
        if lost := [tie for tie in ties if tie not in _allowed(decoder, ends=True)]:
            raise RecipeError(
                f"layers {lost[0]} and {lost[0] + 1} are not there, or have matrices of other shapes; there are "
                f"{len(decoder)}",
                remedy="name others in `runs`",
                field="/chain",
            )
        return joined(ties), []
    if technique.count > len(allowed):
        ends = "" if technique.ends else " (the first and the last layer stay alone unless `ends` is true)"
        raise RecipeError(
            f"cannot tie {technique.count} layers to those before them: {len(allowed)} pairs are alike{ends}",
            remedy=f"tie at most {len(allowed)}",
            field="/chain",
        )
    if technique.order == "random":
        order = torch.randperm(len(allowed), generator=torch.Generator().manual_seed(run.seed)).tolist()
        return joined([allowed[place] for place in order[: technique.count]]), []
    scores = influences(run, decoder, 2) if technique.count else []
    return joined(sorted(allowed, key=lambda tie: (scores[tie], -tie))[: technique.count] if scores else []), scores


def _allowed(decoder: Decoder, *, ends: bool) -> list[int]:
    """Layers that may be tied to the one behind them: those whose matrices are of the same shapes."""
    inner = range(len(decoder) - 1) if ends else range(1, len(decoder) - 2)
    shapes = [_shapes(decoder, index) for index in range(len(decoder))]
    return [tie for tie in inner if shapes[tie] == shapes[tie + 1]]


def _shapes(decoder: Decoder, index: int) -> dict[str, tuple[int, ...]]:
    return {path: decoder.reader.shape(name) for path, name in _matrices(decoder, index).items()}


def _matrices(decoder: Decoder, index: int) -> dict[str, str]:
    """Names in the checkpoint of a layer's tensors that are no vectors, by path in the layer; where one holds all
    experts, by that of the first."""
    found: dict[str, str] = {}
    for path, _ in decoder.layers[index].named_parameters():
        source = decoder.names.sources.get(f"{decoder.layer_name(index)}.{path}")
        if source and len(decoder.reader.shape(source.stored)) > 1:
            found.setdefault(source.stored, path)
    return {path: name for name, path in found.items()}


def _write(run: "Run", reader: TensorReader, groups: Sequence[Sequence[str]], value: str) -> None:
    group_of = {name: group for group in groups for name in group}
    writer = TensorWriter(run.out)
    for done, name in enumerate(reader.names, start=1):
        group = group_of.get(name, (name,))
        writer.add(name, _mean(reader, group) if value == "mean" else reader.tensor(group[0]))
        run.progress("packing", done, len(reader.names))
    writer.close()
    link_companions(run.checkpoint, run.out)


def _mean(reader: TensorReader, names: Sequence[str]) -> torch.Tensor:
    """In float64, one tensor after the other; of one alone its very bits."""
    total = reader.tensor(names[0])
    if len(names) == 1:
        return total
    dtype, total = total.dtype, total.double()
    for name in names[1:]:
        total += reader.tensor(name)
    return (total / len(names)).to(dtype)
