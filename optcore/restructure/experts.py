"""A mixture of experts with fewer of them: which ones go, and the files without them."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from optcore.errors import RecipeError
from optcore.links import link_companions
from optcore.restructure.probe import check_same, probe_logits
from optcore.restructure.routing import Routed, forbidding, routed
from optcore.restructure.saliency import Saliency, saliencies
from optcore.sources.checkpoint_files import CONFIG
from optcore.streaming.decoder import Decoder
from optcore.streaming.writer import TensorWriter
from optcore.targets import EXPERT_COUNTS

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.prune import Cut

_LEAST_of_group = 2
"""Routers of groups rank them by their two best experts."""
Blocks = Mapping[int, Routed]
Kept = Mapping[int, Sequence[int]]


def prune_experts(run: "Run", cut: "Cut", *, is_random: bool) -> None:
    """Write `run.checkpoint` to `run.out` with as many experts left in each layer as `cut` says.

    Raises `RecipeError`, before any text is read, for a model without experts and for fewer than a token needs.
    """
    decoder = Decoder(run.checkpoint)
    blocks = {index: block for index, layer in enumerate(decoder.layers) if (block := routed(layer))}
    config = json.loads((run.checkpoint / CONFIG).read_text())
    count, groups = _counted(blocks, config)
    left = _left(cut, count, groups)
    _check_enough(decoder, blocks, left)
    found = {} if is_random or left == count else saliencies(run, decoder, blocks)
    generator = torch.Generator().manual_seed(run.seed)
    scores = {at: found[at].scores if at in found else _drawn(count, generator) for at in blocks}
    kept = {at: most(scores[at], left, groups) for at in blocks}
    _write(run, decoder, blocks, kept, config)
    dropped = {at: sorted({*range(count)} - {*kept[at]}) for at in blocks}
    check_same(
        probe_logits(Decoder(run.out, dtype=torch.float32)),
        probe_logits(Decoder(run.checkpoint, dtype=torch.float32), around=forbidding(dropped)),
        f"a {type(decoder.model).__name__} without those experts is not the model that never chooses them",
        "prune this model by another method",
    )
    _tell(run, _Pruned(count, left, dropped, found))


def most(scores: Sequence[float], left: int, groups: int) -> list[int]:
    """The `left` experts of highest scores, as many of each group of neighbours, in order; of equals, the first."""
    size, chosen = len(scores) // groups, []
    for start in range(0, len(scores), size):
        ranked = sorted(range(start, start + size), key=lambda number: (-scores[number], number))
        chosen += sorted(ranked[: left // groups])
    return chosen


def _drawn(count: int, generator: torch.Generator) -> list[float]:
    return torch.rand(count, generator=generator).tolist()


def _counted(blocks: Blocks, config: dict[str, Any]) -> tuple[int, int]:
    """How many experts each layer has, and in how many groups."""
    if not blocks:
        raise _refused("the model is dense: it has no experts to leave out", "use `depth`, `ffn` or `sparsify`")
    counts = {(len(block.experts), block.groups) for block in blocks.values()}
    if len(counts) > 1:
        raise _refused(
            f"layers have different numbers of experts ({', '.join(str(count) for count, _ in sorted(counts))})",
            "use a model with as many experts in each layer",
        )
    [(count, groups)] = counts
    if not any(part.get(key) == count for part in _parts(config) for key in EXPERT_COUNTS):
        raise _refused(
            f"config.json has no {', '.join(EXPERT_COUNTS)} that is {count}, the number of experts",
            "write the number of experts into config.json",
        )
    return count, groups


def _left(cut: "Cut", count: int, groups: int) -> int:
    """Experts that stay in a layer."""
    if cut.size is not None:
        if cut.size > count:
            raise _refused(f"cannot keep {cut.size} of {count} experts", f"keep at most {count}")
        if cut.size % groups:
            raise _refused(
                f"{cut.size} experts are not as many from each of the router's {groups} groups",
                f"choose a multiple of {groups}",
            )
        return cut.size
    assert cut.ratio is not None
    in_group = count // groups
    gone = round(cut.ratio * in_group)
    if cut.ratio and not gone:
        raise _refused(
            f"{cut.ratio:.0%} of {in_group} experts{' in a group' * (groups > 1)} is less than half of one",
            f"take away at least {1 / in_group:.3g}, or say how many stay with `size`",
        )
    return (in_group - gone) * groups


def _check_enough(decoder: Decoder, blocks: Blocks, left: int) -> None:
    """Whether the router finds as many experts as it gives a token to."""
    config = decoder.model.config.get_text_config()
    for block in blocks.values():
        needed = int(getattr(block.router, "top_k", None) or getattr(config, "num_experts_per_tok", None) or 1)
        if hasattr(block.router, "num_group"):
            chosen = int(getattr(block.router, "topk_group", None) or 1)
            needed = block.groups * max(_LEAST_of_group, -(-needed // chosen))
        if left < needed:
            raise _refused(
                f"the router needs {needed} experts to choose from, and {left} would be left",
                f"keep at least {needed}",
            )


def _write(run: "Run", decoder: Decoder, blocks: Blocks, kept: Kept, config: dict[str, Any]) -> None:
    """Read and write tensor by tensor."""
    moved, rows = _places(decoder, blocks, kept)
    tensors = (*decoder.model.named_parameters(remove_duplicate=False), *decoder.model.named_buffers())
    claimed = {decoder.names.sources[name].stored for name, _ in tensors if name in decoder.names.sources}
    count = len(next(iter(blocks.values())).experts)
    left = len(next(iter(kept.values())))
    unknown, writer = 0, TensorWriter(run.out)
    for name in decoder.reader.names:
        if left < count and name not in claimed:
            unknown += 1  # it may belong to the experts, as layers for speculation do
        elif name in rows:
            writer.add(name, decoder.reader.tensor(name)[rows[name]])
        elif moved.get(name, name):
            writer.add(moved.get(name, name), decoder.reader.tensor(name))
    writer.close()
    if unknown:
        run.notice(f"{unknown} tensors that no module of the model takes were left out, such as layers for speculation")
    link_companions(run.checkpoint, run.out)
    for part in _parts(config):
        part.update({key: left for key in EXPERT_COUNTS if part.get(key) == count})
    (run.out / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _places(decoder: Decoder, blocks: Blocks, kept: Kept) -> tuple[dict[str, str], dict[str, list[int]]]:
    """New names of single experts' tensors, empty for those that go, and the rows that stay of tensors for all."""
    sources = decoder.names.sources
    moved: dict[str, str] = {}
    rows: dict[str, list[int]] = {}
    for index, block in blocks.items():
        layer = decoder.layer_name(index)
        numbers = {old: new for new, old in enumerate(kept[index])}
        for path, _ in block.experts.named_parameters():
            number, _, rest = path.partition(".")
            source = sources[f"{layer}.{block.path}.{path}"]
            if source.part:
                rows[source.stored] = list(kept[index])
            elif int(number) in numbers:
                moved[source.stored] = sources[f"{layer}.{block.path}.{numbers[int(number)]}.{rest}"].stored
            else:
                moved[source.stored] = ""
        for path in block.tables:
            if stored := sources.get(f"{layer}.{path}"):
                rows[stored.stored] = list(kept[index])
    return moved, rows


class _Pruned(NamedTuple):
    whole: int
    left: int
    dropped: Kept
    measured: Mapping[int, Saliency]


def _tell(run: "Run", pruned: _Pruned) -> None:
    run.results["experts"] = {
        "dropped": {str(at): list(gone) for at, gone in pruned.dropped.items()},
        "saliency": {str(at): found.scores for at, found in pruned.measured.items()},
        "tokens": {str(at): found.tokens for at, found in pruned.measured.items()},
    }
    run.notice(f"{pruned.left} of {pruned.whole} experts stay in each of {len(pruned.dropped)} layers")
    unseen = sum(found.tokens.count(0) for found in pruned.measured.values())
    if unseen:
        of = pruned.whole * len(pruned.measured)
        run.notice(
            f"{unseen} of {of} experts were reached by no calibration token and count as 0: more text, or text of "
            "every kind that the model is for, tells more"
        )


def _parts(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [config, config.get("text_config") or {}]


def _refused(message: str, remedy: str) -> RecipeError:
    return RecipeError(message, remedy=remedy, field="/chain")
