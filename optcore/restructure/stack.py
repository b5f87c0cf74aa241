"""A checkpoint whose decoder layers are others, in an order of their own: fewer, more, or from several models."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from optcore.links import link_companions
from optcore.restructure.probe import are_same, probe_logits
from optcore.sources.checkpoint_files import CONFIG
from optcore.streaming.decoder import Decoder
from optcore.streaming.writer import TensorWriter

_NOT_OF_LAYERS = ("_token_id", "architectures")
"""Lists in a configuration that may be as long as there are layers by chance."""


class Taken(NamedTuple):
    """One layer of the result."""

    model: Decoder
    """Of the same architecture as the one around the layers."""
    number: int
    """The layer's, there."""


def write_stack(
    around: Decoder, layers: Sequence[Taken], out: Path, written: Callable[[int], None] = lambda count: None
) -> None:
    """Write to `out` what is around the layers of one model, with `layers` in their place, tensor by tensor.

    A layer that is taken twice is written twice. `written` is told how many layers are.
    """
    writer = TensorWriter(out)
    place, inside = numbered(around), _by_layer(around)
    for name in around.reader.names:
        if not place.fullmatch(name):
            writer.add(name, around.reader.tensor(name))
    known = {id(around): inside}
    for number, (model, index) in enumerate(layers):
        names = known.setdefault(id(model), inside if model is around else _by_layer(model))[index]
        for name in names:
            found = place.fullmatch(name)
            assert found is not None
            writer.add(f"{found['before']}{number}{found['after']}", model.reader.tensor(name))
        written(number + 1)
    writer.close()
    link_companions(around.reader.folder, out)
    config = json.loads((around.reader.folder / CONFIG).read_text())
    relist(config, around, [index for _, index in layers])
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def is_stack(around: Decoder, layers: Sequence[Taken], out: Path) -> bool:
    """Whether the written model computes what those layers do one after the other: what a layer is can depend on its
    number, and then it is another one in another place."""
    written = Decoder(out)
    kinds = [kind for model, index in layers for kind in layer_kinds(model)[index : index + 1]]
    same_kinds = layer_kinds(written) == kinds  # a short probe lies within every window
    return same_kinds and are_same(probe_logits(written), probe_logits(around, layers))


def layer_kinds(decoder: Decoder) -> list[str]:
    """What each layer's attention is, such as `sliding_attention`; empty where the family does not say."""
    return list(getattr(decoder.model.config.get_text_config(), "layer_types", None) or ())


def numbered(decoder: Decoder) -> re.Pattern[str]:
    """What the stored names of layers' tensors look like: the folder of layers, a number, and the rest."""
    path, _ = next(iter(decoder.layers[0].named_parameters()))
    stored = decoder.names.sources[f"{decoder.layer_name(0)}.{path}"].stored
    folder = stored[: stored.index(".0.") + 1]
    return re.compile(rf"(?P<before>{re.escape(folder)})(?P<number>\d+)(?P<after>\..+)")


def _by_layer(decoder: Decoder) -> dict[int, list[str]]:
    """Stored names of each layer's tensors."""
    place = numbered(decoder)
    names: dict[int, list[str]] = {}
    for name in decoder.reader.names:
        if found := place.fullmatch(name):
            names.setdefault(int(found["number"]), []).append(name)
    return names


def relist(config: dict[str, Any], decoder: Decoder, taken: Sequence[int]) -> None:
    """Set the number of layers, and take what is listed for each of them from where it was taken.

    Kinds of layers are listed even where the configuration left them to be derived from numbers, which now change.
    """
    known = decoder.model.config.get_text_config()
    key = known.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if kinds := layer_kinds(decoder):
        (config.get("text_config") or config)["layer_types"] = kinds
    for part in (config, config.get("text_config") or {}):
        for name, value in part.items():
            if name == key and value == len(decoder):
                part[name] = len(taken)
            if isinstance(value, list) and len(value) == len(decoder) and not name.endswith(_NOT_OF_LAYERS):
                part[name] = [value[index] for index in taken]
