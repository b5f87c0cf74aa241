"""Weights as indices into tables, in one pass over the decoder layers: measure inputs, cluster, write, go on.

A layer's linears are measured together, on what the palettized layers before it give. Tables come from the weights as
stored; the layer that goes on computes with the tables' values, rounded as they are stored.
"""

from typing import TYPE_CHECKING

import torch
from torch import nn

from optcore.algorithms.kmeans import assigned, kmeans, points, squared_error, uniform_levels
from optcore.algorithms.packing import pack_stream
from optcore.calibration.propagate import calibration_windows
from optcore.calibration.reconstruction import tell_layer
from optcore.calibration.statistics import Observer
from optcore.errors import RecipeError
from optcore.links import link_companions
from optcore.palettized import NOTE, PALETTES, Palettized, PalettizedTensor
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import fused_groups, probe_state
from optcore.streaming.hidden import HiddenStates
from optcore.streaming.match import is_matched, time_limit, unmatched
from optcore.streaming.names import Source
from optcore.streaming.simulate import module_paths
from optcore.streaming.tensor_file import TensorFile
from optcore.streaming.writer import TensorWriter, name_weights

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.palettize import Palettize

_DEAD_share = 1e-3
"""Of the mean: what an input that never moved counts. The text that is served may move it."""
_HALVES = (torch.float16, torch.bfloat16)


@torch.no_grad()
def palettize_checkpoint(run: "Run", technique: "Palettize") -> None:
    """Write `run.checkpoint` with its linears' weights from tables to `run.out`, with `palette.json` and the tables.

    Raises `RecipeError`, before any text is read, for an `ignore` that matches nothing, and where nothing is left.
    """
    with TensorFile(run.out / PALETTES, run.scratch) as file:
        _Pass(run, technique, file).walk()


class _Pass:
    """Walks through the layers once."""

    def __init__(self, run: "Run", technique: "Palettize", file: TensorFile) -> None:
        self._run, self._technique, self._file = run, technique, file
        self._decoder = Decoder(run.checkpoint)
        self._probe = probe_state(self._decoder)
        self._tensors: dict[str, PalettizedTensor] = {}
        self._uncounted: list[str] = []
        self._chosen = self._choose()

    def walk(self) -> None:
        """What is outside the layers, then layer by layer, then the description."""
        run, decoder = self._run, self._decoder
        windows_ST = calibration_windows(run, decoder) if self._technique.measures else None
        states = None if windows_ST is None else HiddenStates(decoder, windows_ST, run.scratch)
        writer = TensorWriter(run.out)
        changed = self._embeddings()
        for name, tensor in decoder.outside_tensors():
            writer.add(name, changed.get(name, tensor))
        for index in range(len(decoder)):
            with decoder.layer(index, keep_stored=True) as layer:
                for name, tensor in self._palettized(index, layer, states).items():
                    writer.add(name, tensor)
                if states:
                    states.advance(index, layer)
            run.progress("calibrating" if states else "searching", index + 1, len(decoder))
        writer.close()
        self._file.close()
        name_weights(run.out)
        link_companions(run.checkpoint, run.out)
        self._describe()

    def _choose(self) -> set[str]:
        """Names of the stored tensors to palettize: those with no part to leave alone."""
        decoder, ignore = self._decoder, self._technique.ignore
        sources: dict[str, Source] = {}
        for index, layer in enumerate(decoder.layers):
            for path, name in module_paths(decoder, index, layer).items():
                sources[name] = decoder.names.sources[f"{decoder.layer_name(index)}.{path}.weight"]
        with time_limit():
            lost = unmatched(ignore, sources)
            left = {source.stored for name, source in sources.items() if is_matched(name, ignore)}
        chosen = {source.stored for source in sources.values()} - left
        if lost or not chosen:
            raise RecipeError(
                f"{lost[0]!r} matches no linear layer of the decoder"
                if lost
                else "no linear layer is left to palettize",
                remedy="write a module's name as it is in the checkpoint, or a regular expression after `re:`",
                field="/chain",
            )
        return chosen

    def _embeddings(self) -> dict[str, torch.Tensor]:
        """The tables that tokens are looked up in, and a tied head's copy, where they are asked for."""
        if not self._technique.embeddings:
            return {}
        changed: dict[str, torch.Tensor] = {}
        for name in sorted(f"{module}.weight" for module in self._decoder.embeddings):
            tensor = self._coded(name, self._decoder.reader.tensor(name), None)
            changed |= dict.fromkeys((name, *self._decoder.tied_copies(name)), tensor)
            parameter = next(own for own, stored in self._decoder.names.stored_name.items() if stored == name)
            self._decoder.model.get_parameter(parameter).data.copy_(tensor)  # what the first layer is measured on
        return changed

    def _palettized(self, index: int, layer: nn.Module, states: HiddenStates | None) -> dict[str, torch.Tensor]:
        """The layer's tensors with their new values, which the layer has then too."""
        importance = self._importance(index, layer, states) if states else {}
        stored = dict(self._decoder.stored_tensors(index))
        prefix = self._decoder.layer_name(index)
        parts: dict[str, dict[str, Source]] = {}
        for path in module_paths(self._decoder, index, layer):
            source = self._decoder.names.sources[f"{prefix}.{path}.weight"]
            if source.stored in self._chosen:
                parts.setdefault(source.stored, {})[path] = source
        for name, sources in parts.items():
            weights = self._weights(stored[name], sources, importance) if states else None
            stored[name] = self._coded(name, stored[name], weights)
            for path, source in sources.items():
                layer.get_parameter(f"{path}.weight").data.copy_(source.of(stored[name]))
        tell_layer(self._run, index, (self._tensors[name].relative_error ** 2 for name in parts))
        return stored

    def _importance(self, index: int, layer: nn.Module, states: HiddenStates) -> dict[str, torch.Tensor]:
        """Mean square of each input of the layer's linears, by path; none of those that no token reached."""
        observer = Observer(layer, fused_groups(self._decoder, index, layer, self._probe), gram=False, squares=True)
        for _, state in states.states():
            with observer.measuring(to_the_end=False):
                self._decoder.forward(index, layer, state)
        return {
            path: found.importance_K.cpu()
            for group, found in observer.finished().items()
            for path in group
            if found.importance_K is not None and found.importance_K.isfinite().all() and found.importance_K.any()
        }

    def _weights(
        self, stored: torch.Tensor, sources: dict[str, Source], importance: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """What an error counts, for each element of a stored tensor; 1 for parts of which nothing is known."""
        weights = torch.ones(stored.shape)
        for path, source in sources.items():
            if path in importance:
                mean = importance[path].mean()
                source.of(weights).copy_((importance[path] + _DEAD_share * mean).expand(source.of(weights).shape))
            else:
                self._uncounted.append(path)
        return weights

    def _coded(self, name: str, tensor: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        """The tensor with the values of its tables; tables and indices go to the file.

        A tensor of more than two dimensions is so many matrices, one of each expert.
        """
        technique, levels = self._technique, 2**self._technique.bits
        rows = min(technique.group or tensor.shape[-2], tensor.flatten(0, -2).shape[0])
        blocks = tensor.flatten(0, -2).split(rows)
        counted = [None] * len(blocks) if weights is None else weights.flatten(0, -2).split(rows)
        tables, indices, error, size = [], [], 0.0, 0.0
        for block, weight in zip(blocks, counted, strict=True):
            found = points(block.float().flatten(), None if weight is None else weight.flatten())
            exact_L = kmeans(found, levels) if technique.method == "kmeans" else uniform_levels(found, levels)
            table_L = exact_L.to(_table_type(tensor))
            tables.append(table_L)
            indices.append(assigned(found, table_L))
            error += squared_error(found, table_L)
            size += float((found.weights_U * found.values_U.square()).sum())
        self._file.add(f"{name}.lut", torch.stack(tables))
        self._file.add(f"{name}.indices", pack_stream(torch.cat(indices), technique.bits))
        relative = (error / size) ** 0.5 if size else 0.0
        shape = tuple(tensor.shape)
        self._tensors[name] = PalettizedTensor(bits=technique.bits, rows=rows, shape=shape, relative_error=relative)
        values = [table[index.long()] for table, index in zip(tables, indices, strict=True)]
        return torch.cat(values).to(tensor.dtype).view(shape)

    def _describe(self) -> None:
        run, technique = self._run, self._technique
        sensitivity = technique.sensitivity if technique.measures else "none"
        found = Palettized(method=technique.method, sensitivity=sensitivity, tensors=self._tensors)
        found.save(run.out)
        run.results["palettes"] = found.model_dump(mode="json", exclude={"note", "version"})
        worst = max(self._tensors, key=lambda name: self._tensors[name].relative_error)
        run.notice(
            f"{len(self._tensors)} tensors have tables of {2**technique.bits} values; the largest relative error is "
            f"{self._tensors[worst].relative_error:.3g}, of {worst}. {NOTE}"
        )
        if self._uncounted:
            run.notice(
                f"no calibration token reached {len(self._uncounted)} linear layers: all weights counted the same"
            )


def _table_type(tensor: torch.Tensor) -> torch.dtype:
    """16 bits: the weights' own, or of wider ones float16, unless they are beyond its range."""
    if tensor.dtype in _HALVES:
        return tensor.dtype
    fits = float(tensor.abs().max()) <= torch.finfo(torch.float16).max
    return torch.float16 if fits else torch.bfloat16
