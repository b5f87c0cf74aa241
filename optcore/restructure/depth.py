"""A checkpoint with fewer decoder layers: which ones go, and the files without them."""

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from optcore.errors import RecipeError
from optcore.links import link_companions
from optcore.restructure.influence import influences
from optcore.restructure.probe import check_same, probe_logits
from optcore.sources.checkpoint_files import CONFIG
from optcore.streaming.decoder import Decoder
from optcore.streaming.writer import TensorWriter

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.prune import Prune

_NOT_OF_LAYERS = ("_token_id", "architectures")
"""Lists in a configuration that may be as long as there are layers by chance."""


def prune_depth(run: "Run", technique: "Prune") -> None:
    """Write `run.checkpoint` to `run.out` without the layers that `technique` chooses."""
    decoder = Decoder(run.checkpoint)
    dropped, scores = _dropped(run, decoder, technique)
    kept = [index for index in range(len(decoder)) if index not in dropped]
    _write(run, decoder, kept)
    check_same(
        probe_logits(Decoder(run.out)),
        probe_logits(decoder, kept),
        f"a {type(decoder.model).__name__} without those layers is another model: what its layers do depends on their "
        "numbers",
        "prune this model by another method",
    )
    run.results["depth"] = {"dropped": dropped, "influence": scores}
    if dropped:
        run.notice(f"layers left out: {', '.join(map(str, dropped))} of {len(decoder)}, counted from 0")


def least(scores: Sequence[float], count: int, allowed: range) -> list[int]:
    """The `count` allowed layers of least influence, in their order; of equals, the later ones."""
    return sorted(sorted(allowed, key=lambda index: (scores[index], -index))[:count])


def least_run(scores: Sequence[float], count: int, allowed: range) -> list[int]:
    """The `count` consecutive allowed layers over which hidden states turn least; scores[i] is of those from i on."""
    starts = range(allowed.start, allowed.stop - count + 1)
    start = min(starts, key=lambda index: (scores[index], -index))
    return list(range(start, start + count))


def _dropped(run: "Run", decoder: Decoder, technique: "Prune") -> tuple[list[int], list[float]]:
    """Layers to leave out, and the influences they were chosen by."""
    depth, count = len(decoder), technique.depth
    allowed = range(depth) if technique.ends else range(1, depth - 1)
    if count > len(allowed) or count == depth:
        ends = "" if technique.ends else " (the first and the last stay unless `ends` is true)"
        raise RecipeError(
            f"cannot leave out {count} of {depth} layers{ends}",
            remedy=f"leave out at most {min(len(allowed), depth - 1)}",
            field="/chain",
        )
    if count == 0:
        return [], []
    if technique.order == "random":
        order = torch.randperm(len(allowed), generator=torch.Generator().manual_seed(run.seed)).tolist()
        return sorted(allowed[place] for place in order[:count]), []
    scores = influences(run, decoder, count if technique.contiguous else 1)
    return (least_run if technique.contiguous else least)(scores, count, allowed), scores


def _write(run: "Run", decoder: Decoder, kept: Sequence[int]) -> None:
    place = _numbered(decoder)
    writer = TensorWriter(run.out)
    for name in decoder.reader.names:
        found = place.fullmatch(name)
        if found is None:
            writer.add(name, decoder.reader.tensor(name))
        elif int(found["number"]) in kept:
            number = kept.index(int(found["number"]))
            writer.add(f"{found['before']}{number}{found['after']}", decoder.reader.tensor(name))
    writer.close()
    link_companions(run.checkpoint, run.out)
    config = json.loads((run.checkpoint / CONFIG).read_text())
    _shorten(config, decoder, kept)
    (run.out / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _numbered(decoder: Decoder) -> re.Pattern[str]:
    """What the stored names of layers' tensors look like: the folder of layers, a number, and the rest."""
    path, _ = next(iter(decoder.layers[0].named_parameters()))
    stored = decoder.names.sources[f"{decoder.layer_name(0)}.{path}"].stored
    folder = stored[: stored.index(".0.") + 1]
    return re.compile(rf"(?P<before>{re.escape(folder)})(?P<number>\d+)(?P<after>\..+)")


def _shorten(config: dict[str, Any], decoder: Decoder, kept: Sequence[int]) -> None:
    """Set the number of layers, and take what is listed for each of them from those that stay."""
    key = decoder.model.config.get_text_config().attribute_map.get("num_hidden_layers", "num_hidden_layers")
    for part in (config, config.get("text_config") or {}):
        for name, value in part.items():
            if name == key and value == len(decoder):
                part[name] = len(kept)
            if isinstance(value, list) and len(value) == len(decoder) and not name.endswith(_NOT_OF_LAYERS):
                part[name] = [value[index] for index in kept]
