"""Which entries of each parameter stay: the narrower checkpoint, and the old model with the rest of it masked."""

from collections.abc import Mapping, Sequence

import torch

from optcore.restructure.units import Unit
from optcore.streaming.decoder import Decoder
from optcore.streaming.names import Source
from optcore.streaming.writer import TensorWriter


class Slices:
    """The kept parts of every unit as entries of parameters, and parameters that change beforehand, whole."""

    def __init__(
        self,
        decoder: Decoder,
        units: Sequence[Unit],
        kept: Sequence[torch.Tensor],
        changed: Mapping[str, torch.Tensor],
    ) -> None:
        self._decoder = decoder
        self._changed = changed
        self._entries: dict[str, list[tuple[int, torch.Tensor]]] = {}
        shapes = {name: tensor.shape for name, tensor in decoder.model.state_dict().items()}
        for unit, kept_P in zip(units, kept, strict=True):
            for place in unit.places:
                entries = place.entries(kept_P, unit.parts, shapes[place.parameter][place.dimension])
                self._entries.setdefault(place.parameter, []).append((place.dimension, entries))

    def write(self, writer: TensorWriter) -> int:
        """Write the checkpoint tensor by tensor; what no module takes is left out. Returns how many that were."""
        left_out, reader = 0, self._decoder.reader
        filled: dict[str, list[tuple[str, Source]]] = {}
        for name, source in self._decoder.names.sources.items():
            filled.setdefault(source.stored, []).append((name, source))
        known = self._decoder.model.state_dict().keys()
        for stored in reader.names:
            targets = [target for target in filled.get(stored, []) if target[0] in known]
            if not targets and self._entries:  # it may belong to what is cut
                left_out += 1
            elif targets and targets[0][1].part:
                writer.add(stored, self._fused(reader.tensor(stored), targets))
            else:
                name = targets[0][0] if targets else ""
                writer.add(stored, self._cut(name, reader.tensor(stored)))
        return left_out

    @torch.no_grad()
    def mask(self, name: str, parameter: torch.Tensor) -> None:
        """Give a parameter its new values where it has any, and make zeros of what goes."""
        if name in self._changed:
            parameter.copy_(self._changed[name])
        for dimension, entries in self._entries.get(name, ()):
            gone = torch.ones(parameter.shape[dimension], dtype=torch.bool).index_fill(0, entries, False)
            parameter.index_fill_(dimension, gone.nonzero().squeeze(1).to(parameter.device), 0)

    def _cut(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The kept entries, in the tensor's own type."""
        if name in self._changed:
            tensor = self._changed[name].to(tensor.dtype)
        for dimension, entries in self._entries.get(name, ()):
            tensor = tensor.index_select(dimension, entries)
        return tensor

    def _fused(self, tensor: torch.Tensor, targets: Sequence[tuple[str, Source]]) -> torch.Tensor:
        """One tensor of all experts of a layer: each of them is cut where it lies."""
        name, source = targets[0]
        was, now = source.of(tensor).shape, self._cut(name, source.of(tensor)).shape
        is_transposed = source.part is not None and source.part.layout.is_transposed and len(was) == 2
        ahead = [after / before for before, after in zip(was, now, strict=True)]
        scale = [1.0, *(reversed(ahead) if is_transposed else ahead)]
        fused = tensor.new_empty([round(size * share) for size, share in zip(tensor.shape, scale, strict=True)])
        for name, source in targets:
            source.of(fused).copy_(self._cut(name, source.of(tensor)))
        return fused
