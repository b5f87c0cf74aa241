"""A checkpoint written anew with other values: the names and types of the one it came from."""

from collections.abc import Mapping

import torch
from torch import nn

from optcore.streaming.decoder import Decoder
from optcore.streaming.writer import TensorWriter


def write_outside(decoder: Decoder, writer: TensorWriter, changed: Mapping[str, torch.Tensor]) -> int:
    """Write what is in no layer, `changed` tensors (by their names in the checkpoint) with their new values.

    Where any changed, tensors that no module takes are left out: they may belong to what changed. Returns how many.
    """
    model, left_out, written = decoder.model, 0, set()
    parts = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    sources = decoder.names.sources
    taken = {sources[name].stored for name, _ in parts if name in sources}
    for name, tensor in decoder.outside_tensors():
        written.add(name)
        if name in changed:
            writer.add(name, changed[name].to(tensor.dtype))
        elif name in taken or not changed:
            writer.add(name, tensor)
        else:
            left_out += 1
    for name in changed.keys() - written:
        writer.add(name, changed[name].to(decoder.stored_dtype))
    return left_out


def layer_tensors(decoder: Decoder, index: int, layer: nn.Module) -> dict[str, torch.Tensor]:
    """The layer's tensors under their names and in their types, with the values that the layer has now."""
    stored = {name: tensor.clone() for name, tensor in decoder.stored_tensors(index).items()}
    for path, parameter in layer.named_parameters():
        source = decoder.names.sources[f"{decoder.layer_name(index)}.{path}"]
        source.of(stored[source.stored]).copy_(parameter.data)
    return stored
