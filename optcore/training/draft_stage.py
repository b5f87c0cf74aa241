"""Training of a draft beside the very model that ships: that stays what it is, and a small one learns to guess it."""

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import save_file

from optcore.architecture import task_of
from optcore.drafts.build import build_draft, draft_parameters
from optcore.drafts.draft import Draft as AnyDraft
from optcore.drafts.taps import default_taps
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.errors import DataError, RecipeError
from optcore.speculative.target import Target
from optcore.streaming.skeleton import layers_of, skeleton
from optcore.training.draft_features import LiveFeatures
from optcore.training.draft_losses import DraftLoss
from optcore.training.draft_trainee import DraftTrainee, all_answered
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
    """What is known before anything is loaded."""

    taps: tuple[int, ...]
    size: int
    """Of the draft vocabulary."""
    config: Any
    """The target's."""


def train_draft(run: "Run", technique: "Draft") -> None:
    """Train a draft for the model of `run.checkpoint` on `run.windows` and write it to `run.out`.

    Raises `RecipeError`, `DataError` or `OutOfMemory` before anything is loaded for a target that no draft can be
    trained for.
    """
    windows = Windows(run.windows)
    plan = _planned(run, technique)
    _check_answers(technique, windows)
    ranks = Ranks(technique.batch)
    parameters = draft_parameters(technique, plan.config, plan.taps, plan.size)
    check_draft_memory(run.checkpoint, parameters, device=ranks.device, processes=ranks.count)
    target = Target(run.checkpoint, plan.taps, ranks.device)
    if target.head is None:
        raise _refused(run, f"{type(target.model).__name__} makes logits in a way that a draft cannot be compared with")
    vocabulary = _counted(run, windows, plan.size, target)
    draft = build_draft(technique, target, vocabulary, run.seed)
    draft.recomputes = technique.gradient_checkpointing
    trainee = DraftTrainee(
        draft,
        LiveFeatures(target, getattr(torch, technique.feature_dtype)),
        DraftLoss(target.head, vocabulary, technique.loss),
        depth=technique.unroll,
        decay=technique.decay,
        drafted=technique.tokens,
    )
    ranks.shard(trainee, ())
    loop = Loop(run, technique, trainee, windows, ranks)
    loop.start()
    state = loop.train()
    with ranks.gathered(trainee):
        if ranks.is_first:
            _write(run, draft)
    ranks.wait()
    note_training(run, technique, state, windows.facts)
    run.results["draft"] = run.results.get("draft", {}) | {  # type: ignore[operator]
        "method": draft.method,
        "parameters": parameters,
        "taps": list(draft.taps),
    }
    ranks.leave()


def _planned(run: "Run", technique: "Draft") -> _Plan:
    if task_of(run.checkpoint) != "text-generation":
        raise _refused(run, "a draft guesses what a causal language model says next, and this model is an encoder")
    model = skeleton(run.checkpoint, torch.float32)
    config = model.config.get_text_config()
    taps, layers = technique.taps, len(layers_of(model)[1])
    if taps is None:
        taps = default_taps(layers)
    if max(taps) >= layers or len(set(taps)) < len(taps):
        raise RecipeError(
            f"`taps` are different layers from 0 to {layers - 1} of this model, not {', '.join(map(str, taps))}",
            remedy="name other layers, or leave `taps` out",
            field=run.place,
        )
    known = int(config.vocab_size)
    if technique.vocabulary is not None and technique.vocabulary > known:
        raise RecipeError(
            f"a draft cannot say {technique.vocabulary} tokens where the model knows {known}",
            remedy=f"lower `vocabulary` to at most {known}, or leave it out",
            field=run.place,
        )
    return _Plan(taps, technique.vocabulary or min(_USUAL_vocabulary, known), config)


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


def _counted(run: "Run", windows: Windows, size: int, target: Target) -> DraftVocabulary:
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


def _write(run: "Run", draft: AnyDraft) -> None:
    """The draft's tensors, and what is to be known of them."""
    tensors = {name: value.detach().contiguous().cpu() for name, value in draft.state_dict().items()}
    tensors |= {"d2t": draft.vocabulary.d2t_D.cpu(), "t2d": draft.vocabulary.t2d_V.cpu()}
    save_file(tensors, run.out / "draft.safetensors", metadata={"format": "pt"})
    facts = {"method": draft.method, "taps": draft.taps, "sizes": draft.sizes.model_dump()}
    (run.out / "draft.json").write_text(json.dumps(facts, indent=2) + "\n")


def _refused(run: "Run", why: str) -> RecipeError:
    return RecipeError(why, remedy="leave `draft` out, or choose another `method`", field=run.place)
