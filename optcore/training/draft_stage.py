"""Training of a draft beside the very model that ships: that stays what it is, and a small one learns to guess it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from optcore.drafts.build import build_draft
from optcore.drafts.draft import Draft as AnyDraft
from optcore.drafts.folder import layout_of, read_draft, write_draft
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.errors import DataError
from optcore.speculative.target import Target, TargetEnds
from optcore.training.batches import micro_size
from optcore.training.draft_features import FeatureSource, LiveFeatures
from optcore.training.draft_losses import DraftLoss
from optcore.training.draft_plan import DraftPlan, planned_draft, target_facts
from optcore.training.draft_trainee import DraftTrainee, all_answered, answered
from optcore.training.feature_sizes import settle_fusions
from optcore.training.kept_features import KeptFeatures
from optcore.training.loop import Loop
from optcore.training.ranks import Ranks
from optcore.training.report import note_training
from optcore.training.windows import BEGINS, LEARNED, Batch, Windows

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.draft import Draft

_READ_windows = 256


def train_draft(run: "Run", technique: "Draft") -> None:
    """Train a draft for the model of `run.checkpoint` on `run.windows` and write it to `run.out`.

    Raises `RecipeError`, `DataError` or `OutOfMemory` before anything is loaded for a target that no draft can be
    trained for.
    """
    windows = Windows(run.windows)
    plan = planned_draft(run, technique)
    _check_answers(technique, windows)
    ranks = Ranks(technique.batch)
    plan.check_memory(technique, ranks, is_kept=run.features is not None)
    target, source = _source(run, technique, plan, ranks)
    draft = _begun(run, technique, plan, target, windows)
    micro = micro_size(technique.micro_batch, windows.facts.length)
    settle_fusions(draft, source, windows, ranks.device, micro, keeps=plan.begun is not None)
    assert target.head is not None  # by the plan
    trainee = DraftTrainee(
        draft,
        source,
        DraftLoss(target.head, draft.vocabulary, technique.loss),
        depth=technique.trained_answers,
        decay=technique.decay,
        drafted=technique.tokens,
    )
    loop = Loop(run, technique, trainee, windows, ranks)
    loop.start()
    state = loop.train()
    _write(run, technique, draft)
    note_training(run, technique, state, windows.facts)
    facts = {"method": draft.method, "parameters": plan.parameters(technique), "taps": list(draft.taps)}
    run.results["draft"] = run.results.get("draft", {}) | facts  # type: ignore[operator]


def _source(run: "Run", technique: "Draft", plan: DraftPlan, ranks: Ranks) -> tuple[TargetEnds, FeatureSource]:
    """The target, as much of it as is needed, and what it computes of windows."""
    if run.features:
        ends = TargetEnds(run.checkpoint, plan.taps, ranks.device)
        return ends, KeptFeatures(run.features, ranks.device, ends.decoder.dtype)
    target = Target(run.checkpoint, plan.taps, ranks.device)
    return target, LiveFeatures(target, getattr(torch, technique.feature_dtype))


def _begun(run: "Run", technique: "Draft", plan: DraftPlan, target: TargetEnds, windows: Windows) -> AnyDraft:
    if plan.begun:
        draft = read_draft(run.models[0], target)
    else:
        draft = build_draft(technique, target, _counted(run, windows, plan.size, target), run.seed)
    draft.recomputes = technique.gradient_checkpointing
    return draft


def _check_answers(technique: "Draft", windows: Windows) -> None:
    """Raise `DataError` where no window to train on has an answer to learn, or none to measure on has a position whose
    every drafted token is learned."""
    facts = windows.facts
    trained, measured = range(facts.training), range(facts.training, facts.windows)
    if not any(answered(batch, 0).any() for batch in _batches(windows, trained)):
        raise DataError(
            "nothing is to be learned in the windows to train on",
            remedy="lengthen `sequence_length` beyond the prompts, or give more data",
            field="/chain",
        )
    if not any(all_answered(batch, technique.tokens).any() for batch in _batches(windows, measured)):
        raise DataError(
            f"nowhere in the windows to measure on are {technique.tokens + 2} tokens of a document in a row, whose "
            f"last {technique.tokens} are learned",
            remedy="lengthen `sequence_length`, raise `validation.samples`, or draft fewer `tokens`",
            field="/chain",
        )


def _batches(windows: Windows, numbers: range) -> Iterator[Batch]:
    for start in range(numbers.start, numbers.stop, _READ_windows):
        yield windows.read(range(start, min(start + _READ_windows, numbers.stop)))


def _counted(run: "Run", windows: Windows, size: int, target: TargetEnds) -> DraftVocabulary:
    """The tokens that are learned most often, and a word on how much of what is learned they are."""
    counts_V = torch.zeros(target.vocabulary, dtype=torch.long)
    for batch in _batches(windows, range(windows.facts.training)):
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
    layout = layout_of(draft.method, technique.layout)
    tokens = draft.most or technique.tokens
    write_draft(draft, run.out, layout, target_facts(run), tokens=tokens)
