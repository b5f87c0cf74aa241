"""Training of a draft beside the very model that ships: that stays what it is, and a small one learns to guess it."""

import json
from typing import TYPE_CHECKING, NamedTuple

import torch

from optcore.architecture import task_of
from optcore.drafts.build import build_draft, draft_parameters
from optcore.drafts.draft import Draft as AnyDraft
from optcore.drafts.folder import layout_of, read_draft, read_parts, write_draft
from optcore.drafts.parts import DraftParts, TargetFacts
from optcore.drafts.taps import taps_of
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.errors import DataError, RecipeError
from optcore.speculative.outline import TargetOutline
from optcore.speculative.target import Target, TargetEnds
from optcore.training.draft_features import FeatureSource, LiveFeatures
from optcore.training.draft_losses import DraftLoss
from optcore.training.draft_trainee import DraftTrainee, all_answered
from optcore.training.kept_features import KeptFeatures
from optcore.training.loop import Loop
from optcore.training.memory import check_draft_memory
from optcore.training.ranks import Ranks
from optcore.training.report import note_training
from optcore.training.windows import BEGINS, LEARNED, Windows

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.draft import Draft

_USUAL_vocabulary = 32_000
_READ_windows = 256


class _Plan(NamedTuple):
    """What is known before the target is loaded."""

    outline: TargetOutline
    taps: tuple[int, ...]
    size: int
    """Of the draft vocabulary."""
    begun: DraftParts | None
    """The draft to go on from."""


def train_draft(run: "Run", technique: "Draft") -> None:
    """Train a draft for the model of `run.checkpoint` on `run.windows` and write it to `run.out`.

    Raises `RecipeError`, `DataError` or `OutOfMemory` before anything is loaded for a target that no draft can be
    trained for.
    """
    windows = Windows(run.windows)
    plan = _planned(run, technique)
    _check_answers(technique, windows)
    ranks = Ranks(technique.batch)
    parameters = draft_parameters(technique, plan.outline.tapping(plan.taps), plan.size)
    read = plan.outline.ends_parameters if run.features else plan.outline.parameters
    check_draft_memory(read, parameters, device=ranks.device, processes=ranks.count)
    target, source = _source(run, technique, plan, ranks)
    draft = _begun(run, technique, plan, target, windows)
    assert target.head is not None  # by the plan
    trainee = DraftTrainee(
        draft,
        source,
        DraftLoss(target.head, draft.vocabulary, technique.loss),
        depth=technique.trained_answers,
        decay=technique.decay,
        drafted=technique.tokens,
    )
    ranks.shard(trainee, ())
    loop = Loop(run, technique, trainee, windows, ranks)
    loop.start()
    state = loop.train()
    with ranks.gathered(trainee):
        if ranks.is_first:
            _write(run, technique, draft)
    ranks.wait()
    note_training(run, technique, state, windows.facts)
    facts = {"method": draft.method, "parameters": parameters, "taps": list(draft.taps)}
    run.results["draft"] = run.results.get("draft", {}) | facts  # type: ignore[operator]
    ranks.leave()


def _planned(run: "Run", technique: "Draft") -> _Plan:
    if task_of(run.checkpoint) != "text-generation":
        raise _refused(run, "a draft guesses what a causal language model says next, and this model is an encoder")
    outline = TargetOutline(run.checkpoint)
    if outline.head is None:
        raise _refused(
            run, f"{type(outline.model).__name__} makes logits in a way that a draft cannot be compared with"
        )
    layers, known = outline.layers, outline.vocabulary
    begun = read_parts(run.models[0], layers) if technique.start else None
    taps = begun.taps if begun and technique.taps is None else taps_of(technique, layers)
    if begun and begun.taps != taps:
        raise _refused(run, f"the draft to begin with reads the layers {begun.taps}, and `taps` are {taps}")
    if taps and (max(taps) >= layers or len(set(taps)) < len(taps)):
        raise RecipeError(
            f"`taps` are different layers from 0 to {layers - 1} of this model, not {', '.join(map(str, taps))}",
            remedy="name other layers, or leave `taps` out",
            field=run.place,
        )
    if technique.vocabulary is not None and technique.vocabulary > known:
        raise RecipeError(
            f"a draft cannot say {technique.vocabulary} tokens where the model knows {known}",
            remedy=f"lower `vocabulary` to at most {known}, or leave it out",
            field=run.place,
        )
    if technique.mask_token is not None and technique.mask_token >= known:
        raise RecipeError(
            f"`mask_token` is {technique.mask_token}, and the model knows tokens 0 to {known - 1}",
            remedy="name a token of the model that never occurs in text, or leave it out",
            field=run.place,
        )
    own = technique.method in ("eagle3", "medusa")  # whose head is their own
    size = technique.vocabulary or min(_USUAL_vocabulary, known) if own else known
    return _Plan(outline, taps, len(begun.vocabulary.ids_D) if begun else size, begun)


def _source(run: "Run", technique: "Draft", plan: _Plan, ranks: Ranks) -> tuple[TargetEnds, FeatureSource]:
    """The target, as much of it as is needed, and what it computes of windows."""
    if run.features:
        ends = TargetEnds(run.checkpoint, plan.taps, ranks.device)
        return ends, KeptFeatures(run.features, ranks.device, ends.decoder.dtype)
    target = Target(run.checkpoint, plan.taps, ranks.device)
    return target, LiveFeatures(target, getattr(torch, technique.feature_dtype))


def _begun(run: "Run", technique: "Draft", plan: _Plan, target: TargetEnds, windows: Windows) -> AnyDraft:
    if plan.begun:
        draft = read_draft(run.models[0], target)
        if draft.method != technique.method:
            raise _refused(run, f"the draft to begin with is of the method {draft.method}, and not {technique.method}")
    else:
        draft = build_draft(technique, target, _counted(run, windows, plan.size, target), run.seed)
    draft.recomputes = technique.gradient_checkpointing
    return draft


def _check_answers(technique: "Draft", windows: Windows) -> None:
    """Raise `DataError` where no window to measure on has a position whose every drafted token is learned."""
    facts = windows.facts
    for start in range(facts.training, facts.windows, _READ_windows):
        batch = windows.read(range(start, min(start + _READ_windows, facts.windows)))
        if all_answered(batch, technique.tokens).any():
            return
    raise DataError(
        f"nowhere in the windows to measure on are {technique.tokens + 2} tokens of a document in a row, whose last "
        f"{technique.tokens} are learned",
        remedy="lengthen `sequence_length`, raise `validation.samples`, or draft fewer `tokens`",
        field="/chain",
    )


def _counted(run: "Run", windows: Windows, size: int, target: TargetEnds) -> DraftVocabulary:
    """The tokens that are learned most often, and a word on how much of what is learned they are."""
    counts_V = torch.zeros(target.vocabulary, dtype=torch.long)
    for start in range(0, windows.facts.training, _READ_windows):
        batch = windows.read(range(start, min(start + _READ_windows, windows.facts.training)))
        learned_BT = (batch.flags_BT & (LEARNED | BEGINS)) == LEARNED
        counts_V += torch.bincount(batch.tokens_BT[learned_BT], minlength=target.vocabulary)
    found = DraftVocabulary.most_frequent(counts_V, size)
    covered = float(counts_V[found.ids_D].sum() / counts_V.sum())
    run.results["draft"] = {"vocabulary": size, "covered": covered}
    if not found.is_whole:
        run.notice(
            f"the draft can say {size} of {target.vocabulary} tokens, which are {covered:.2%} of the text that it "
            "learns from; the others are never drafted"
        )
    return DraftVocabulary(found.ids_D.to(target.device), found.size)


def _write(run: "Run", technique: "Draft", draft: AnyDraft) -> None:
    config = json.loads((run.checkpoint / "config.json").read_text())
    layout = layout_of(draft.method, technique.layout)
    write_draft(draft, run.out, layout, TargetFacts(config, run.source.name), tokens=technique.tokens)


def _refused(run: "Run", why: str) -> RecipeError:
    return RecipeError(why, remedy="leave `draft` out, or choose another `method`", field=run.place)
