"""The chosen variants as a checkpoint: zeros first, then layers left out and widths cut where that is possible."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from optcore.links import link_checkpoint, link_companions
from optcore.puzzle import DESCRIPTION, EVEN, UNEVEN, LayerStructure, Structure
from optcore.restructure.puzzle_library import Library, Variant
from optcore.restructure.puzzle_parts import Part, Parts
from optcore.restructure.stack import Taken, is_stack, write_stack
from optcore.restructure.width import write_narrower
from optcore.restructure.width_plan import planned
from optcore.sparsity import UNSTRUCTURED, SparseTensor, Sparsity, accelerated_by
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import probe_state
from optcore.streaming.rewrite import layer_tensors, write_outside
from optcore.streaming.writer import TensorWriter
from optcore.techniques.prune import Cut, Prune

if TYPE_CHECKING:
    from optcore.run import Run

Chosen = Mapping[Part, float]


@torch.no_grad()
def write(run: "Run", library: Library, parts: Parts, chosen: Chosen) -> Structure:
    """Write the model with these shares of its parts to `run.out`, with `puzzle.json` and, for zeros, `sparsity.json`.

    Layers that do nothing any more go. Where those that stay lose the same share of their channels, and no attention,
    their matrices are cut.
    """
    folder, idle = _zeroed(run, library, parts, chosen)
    stay = list(range(len(library.decoder)))
    if idle:
        folder, stay = _without(run, folder, idle, len(library.decoder))
    left = [part for index in stay for part in parts.of(index)]
    narrower = _narrower(run, folder, library, left, chosen, stay)
    link_checkpoint(narrower or folder, run.out)
    is_zeroed = narrower is None and any(chosen[part] < 1 for part in left)
    if is_zeroed:
        _sparsity(folder, library, left, chosen, stay).save(run.out)
    structure = Structure(
        layers=tuple(_described(index, parts, chosen) for index in stay),
        dropped=tuple(sorted(set(range(len(library.decoder))) - set(stay))),
        zeroed=is_zeroed,
        served_by=UNEVEN if is_zeroed else EVEN,
    )
    (run.out / DESCRIPTION).write_text(structure.model_dump_json(indent=2) + "\n")
    return structure


def _zeroed(run: "Run", library: Library, parts: Parts, chosen: Chosen) -> tuple[Path, list[int]]:
    """A checkpoint of the old shapes; the numbers of layers that give what they are given."""
    decoder, idle = library.decoder, []
    probe, folder = probe_state(decoder), run.scratch / "puzzle-zeroed"
    folder.mkdir(parents=True)
    writer = TensorWriter(folder)
    write_outside(decoder, writer, {})
    for index in range(len(decoder)):
        slices = library.slices([Variant(part, chosen[part]) for part in parts.of(index)])
        with decoder.layer(index, keep_stored=True) as layer:
            for path, parameter in layer.named_parameters():
                slices.mask(f"{decoder.layer_name(index)}.{path}", parameter.data)
            if torch.equal(decoder.forward(index, layer, probe).hidden_BTH, probe.hidden_BTH):
                idle.append(index)
            for name, tensor in layer_tensors(decoder, index, layer).items():
                writer.add(name, tensor)
    writer.close()
    link_companions(run.checkpoint, folder)
    return folder, [index for index in idle if not any(chosen[part] for part in parts.of(index))]


def _without(run: "Run", folder: Path, idle: list[int], depth: int) -> tuple[Path, list[int]]:
    """The same without idle layers, where the family allows it; which layers stay."""
    decoder, stay = Decoder(folder), [index for index in range(depth) if index not in idle]
    kept, shorter = [Taken(decoder, index) for index in stay], run.scratch / "puzzle-shorter"
    shorter.mkdir()
    write_stack(decoder, kept, shorter)
    if is_stack(decoder, kept, shorter):
        return shorter, stay
    run.notice("layers of which nothing is left stay, as zeros: what this model's layers do depends on their numbers")
    return folder, list(range(depth))


def _narrower(
    run: "Run", folder: Path, library: Library, left: list[Part], chosen: Chosen, stay: list[int]
) -> Path | None:
    """The same with its FFN matrices really cut, where all lose as much; None where they do not."""
    ffn = [part for part in left if part.kind == "ffn"]
    shares = {chosen[part] for part in ffn}
    whole_attention = all(chosen[part] == 1 for part in left if part.kind == "attention")
    if len(shares) != 1 or shares & {0.0, 1.0} or not whole_attention:
        return None
    (share,) = shares
    decoder = Decoder(folder, dtype=torch.float32)
    plan = planned(decoder, Prune(ffn=Cut(ratio=1 - share), multiple=ffn[0].multiple), run.scratch)
    named = {
        _renamed(unit.reader, library.decoder, part.index, stay): kept_P
        for part in ffn
        for unit, kept_P in zip(part.units, library.kept(Variant(part, share)), strict=True)
    }
    if [unit.keeps for unit in plan.units] != [len(named[unit.reader]) for unit in plan.units]:
        return None
    narrower = run.scratch / "puzzle-narrower"
    narrower.mkdir()
    kept = [named[unit.reader] for unit in plan.units]
    write_narrower(replace(run, checkpoint=folder, out=narrower), decoder, plan, kept, {})
    return narrower


def _sparsity(folder: Path, library: Library, left: list[Part], chosen: Chosen, stay: list[int]) -> Sparsity:
    """The tensors that something was taken out of, and what is left of them."""
    decoder = Decoder(folder)
    cut = [part for part in left if chosen[part] < 1]
    names = {
        _renamed(name, library.decoder, part.index, stay)
        for part in cut
        for name in part.touched
        if name not in part.ends or chosen[part] == 0
    }
    stored = sorted({decoder.names.sources[name].stored for name in names})
    tensors = {name: decoder.reader.tensor(name) for name in stored}
    counted = {
        name: SparseTensor(pattern=UNSTRUCTURED, nonzero=int(tensor.count_nonzero()), total=tensor.numel())
        for name, tensor in tensors.items()
    }
    return Sparsity(method="puzzle", tensors=counted, accelerated_by=accelerated_by(UNSTRUCTURED))


def _renamed(name: str, decoder: Decoder, index: int, stay: list[int]) -> str:
    """A parameter's name once only some layers stay."""
    return f"{decoder.layer_name(stay.index(index))}{name.removeprefix(decoder.layer_name(index))}"


def _described(index: int, parts: Parts, chosen: Chosen) -> LayerStructure:
    own = {part.kind: part for part in parts.of(index)}
    attention, ffn = own.get("attention"), own.get("ffn")
    return LayerStructure(
        was=index,
        attention=bool(chosen[attention]) if attention else None,
        ffn=sum(ffn.counts(chosen[ffn])) if ffn else None,
        ffn_before=sum(ffn.counts(1)) if ffn else None,
    )
