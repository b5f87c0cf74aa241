"""Puzzle (arXiv:2411.19146): each layer gets its own structure out of a library, within one budget."""

from typing import TYPE_CHECKING

import torch

from optcore.algorithms.block_choice import equal, least
from optcore.errors import RecipeError
from optcore.links import link_checkpoint
from optcore.puzzle import Structure
from optcore.restructure.puzzle_library import Scores, Variant, build
from optcore.restructure.puzzle_parts import Part, Parts, find_parts
from optcore.restructure.puzzle_writer import Chosen, write
from optcore.streaming.decoder import Decoder

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.puzzle import Puzzle


def puzzle_checkpoint(run: "Run", technique: "Puzzle") -> None:
    """Write `run.checkpoint` to `run.out` with its layers cut to `technique.target`.

    Raises `RecipeError`, before any text is read, for a budget below the smallest choice, and for a model whose
    feed-forward networks cannot be cut.
    """
    decoder = Decoder(run.checkpoint, dtype=torch.float32)
    if decoder.is_classifier and technique.score == "kl":
        raise _refused("a classifier's predictions are of whole texts, not of windows", "choose `score: local`")
    parts = find_parts(decoder, technique, run.scratch)
    budget = technique.target.of(parts.total)
    if budget >= parts.total:
        link_checkpoint(run.checkpoint, run.out)
        run.notice(f"nothing was taken away: the layers take {parts.total}, which is within the budget")
        return
    _check(parts, budget, technique)
    if technique.choice == "uniform":
        chosen = _equal(parts, budget, technique)
        shares = {part: [chosen[part]] for part in parts.parts}
        library, scores = build(run, decoder, parts, shares, technique)
    else:
        library, scores = build(run, decoder, parts, {part: part.shares for part in parts.parts}, technique)
        chosen = _least(parts, budget, scores)
    if not any(chosen.values()):
        raise _refused("within this budget no layer keeps anything", "raise the budget")
    _tell(run, technique, parts, chosen, scores, write(run, library, parts, chosen))


def _check(parts: Parts, budget: int, technique: "Puzzle") -> None:
    unit = "parameters" if parts.by_number else "bytes"
    if technique.attention and not parts.kind("attention"):
        raise _refused(
            "no layer's attention could be told from the rest of it",
            "set `attention: false`, and only feed-forward networks are cut",
        )
    if parts.smallest > budget:
        raise _refused(
            f"the decoder layers, {parts.total} {unit}, cannot be cut to {budget}: the least that these choices leave "
            f"is {parts.smallest} ({parts.smallest / parts.total:.1%})",
            "raise the budget, or allow smaller shares in `ffn`",
        )


def _least(parts: Parts, budget: int, scores: Scores) -> Chosen:
    options = [
        {share: scores[Variant(part, share)] if share < 1 else 0.0 for share in part.shares} for part in parts.parts
    ]
    return dict(zip(parts.parts, least(parts.parts, options, budget - parts.fixed), strict=True))


def _equal(parts: Parts, budget: int, technique: "Puzzle") -> Chosen:
    ffn, attention = parts.kind("ffn"), parts.kind("attention")
    widest = max((unit.parts for part in ffn for unit in part.units), default=1)
    steps = max(1, -(-widest // technique.multiple))
    share, whole = equal(ffn, attention, steps, budget - parts.fixed)
    stays: dict[Part, float] = {part: float(place < whole) for place, part in enumerate(attention)}
    return {**stays, **dict.fromkeys(ffn, share)}


def _tell(run: "Run", technique: "Puzzle", parts: Parts, chosen: Chosen, scores: Scores, structure: Structure) -> None:
    unit = "parameters" if parts.by_number else "bytes"
    after = parts.left(chosen, [layer.was for layer in structure.layers])
    lost = sum(not share for part, share in chosen.items() if part.kind == "attention")
    run.notice(
        f"decoder layers: {parts.total} -> {after} {unit} ({after / parts.total:.1%}); {lost} layers lost their "
        f"attention, {len(structure.dropped)} are gone; {structure.served_by}"
    )
    run.results["puzzle"] = {
        "unit": unit,
        "layers_before": parts.total,
        "layers_after": after,
        "predicted": sum(scores.get(Variant(part, share), 0.0) for part, share in chosen.items()) if scores else None,
        "scores": [
            {"layer": one.part.index, "part": one.part.kind, "share": one.share, technique.score: score}
            for one, score in scores.items()
        ],
        "structure": structure.model_dump(mode="json"),
    }


def _refused(message: str, remedy: str) -> RecipeError:
    return RecipeError(message, remedy=remedy, field="/chain")
