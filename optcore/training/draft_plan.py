"""What a draft will be, known before its target is loaded: which layers it reads, and what it begins with."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from optcore.architecture import task_of
from optcore.drafts.build import outlined_draft
from optcore.drafts.folder import layout_config, layout_of, parts_of, read_parts
from optcore.drafts.parts import DraftParts, TargetFacts
from optcore.drafts.taps import taps_of
from optcore.errors import RecipeError
from optcore.sources.checkpoint_files import CONFIG
from optcore.speculative.outline import AnyTarget, TargetOutline
from optcore.training.memory import check_draft_memory
from optcore.training.ranks import Ranks

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.draft import Draft

_USUAL_vocabulary = 32_000
_REMEDY = "leave `draft` out, or choose another `method`"


class DraftPlan(NamedTuple):
    """A draft for a target."""

    outline: TargetOutline
    """Of the target, tapped where the draft reads it."""
    size: int
    """Of the draft vocabulary."""
    begun: DraftParts | None
    """The draft to go on from."""

    @property
    def taps(self) -> tuple[int, ...]:
        """The layers that it reads."""
        return self.outline.taps

    def parameters(self, technique: "Draft") -> int:
        """How many would train."""
        if self.begun:
            return sum(tensor.numel() for tensor in self.begun.tensors.values())
        return sum(value.numel() for value in outlined_draft(technique, self.outline, self.size).parameters())

    def parts(self, technique: "Draft") -> DraftParts:
        """Names and shapes of what will be written."""
        return self.begun or parts_of(outlined_draft(technique, self.outline, self.size), technique.tokens)

    def check_memory(self, technique: "Draft", ranks: Ranks, *, is_kept: bool) -> None:
        """Raise `OutOfMemory` where it cannot train beside its target, or beside the ends of one whose features are
        kept."""
        read = self.outline.ends_parameters if is_kept else self.outline.parameters
        check_draft_memory(read, self.parameters(technique), ranks.device)


def planned_draft(run: "Run", technique: "Draft") -> DraftPlan:
    """Raises `RecipeError` for a target that has no draft, for settings that do not fit it or the draft to begin with,
    and for a draft that its layout cannot say; `BadCheckpoint` and `UnsafeCheckpoint` where the one to begin with is
    none."""
    outline = target_outline(run)
    layers, known = outline.layers, outline.vocabulary
    begun = read_parts(run.models[0], layers) if technique.start else None
    taps = begun.taps if begun and technique.taps is None else taps_of(technique, layers)
    _check_settings(run, technique, taps, layers, known)
    if begun:
        for why in _contradictions(technique, begun, known):
            raise RecipeError(
                f"the draft to begin with {why}",
                remedy="name a draft that was made like this for this model, or let the settings be those of the draft",
                field=f"{run.place}/start",
            )
    own = technique.method in ("eagle3", "medusa")  # whose head is their own
    size = technique.vocabulary or min(_USUAL_vocabulary, known) if own else known
    plan = DraftPlan(outline.tapping(taps), len(begun.vocabulary.ids_D) if begun else size, begun)
    if technique.steps:
        layout_config(plan.parts(technique), layout_of(technique.method, technique.layout), target_facts(run))
    return plan


def target_outline(run: "Run") -> TargetOutline:
    """Of the model that is drafted for. Raises `RecipeError` where that can have no draft."""
    if task_of(run.checkpoint) != "text-generation":
        why = "a draft guesses what a causal language model says next, and this model is an encoder"
        raise RecipeError(why, remedy=_REMEDY, field=run.place)
    outline = TargetOutline(run.checkpoint)
    require_head(outline, run)
    return outline


def require_head(target: AnyTarget, run: "Run") -> None:
    """Raise `RecipeError` where no one linear layer makes the logits: of an outline by its shape, and of the ends of a
    target by what it computes."""
    if target.head is None:
        why = f"{type(target.model).__name__} makes logits in a way that a draft cannot be compared with"
        raise RecipeError(why, remedy=_REMEDY, field=run.place)


def target_facts(run: "Run") -> TargetFacts:
    """What a draft's configuration says of the model that it is for."""
    return TargetFacts(json.loads((run.checkpoint / CONFIG).read_text()), run.source.name)


def _check_settings(run: "Run", technique: "Draft", taps: tuple[int, ...], layers: int, known: int) -> None:
    if taps and max(taps) >= layers:
        raise RecipeError(
            f"`taps` are layers from 0 to {layers - 1} of this model, not {', '.join(map(str, taps))}",
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


def _contradictions(technique: "Draft", begun: DraftParts, known: int) -> Iterator[str]:
    """What the recipe says of the draft and its folder says otherwise, as the ends of sentences."""
    if begun.method != technique.method:
        yield f"is of the method {begun.method}, and not {technique.method}"
    if technique.taps not in (None, begun.taps):
        yield f"reads the layers {list(begun.taps)}, and `taps` are {list(technique.taps or ())}"
    if begun.vocabulary.size != known:
        yield f"is for a model of {begun.vocabulary.size} tokens, and this one has {known}"
    if technique.vocabulary not in (None, len(begun.vocabulary.ids_D)):
        yield f"says {len(begun.vocabulary.ids_D)} tokens, and `vocabulary` is {technique.vocabulary}"
    if technique.method in ("medusa", "block") and technique.tokens > begun.tokens:
        yield f"guesses {begun.tokens} tokens at once, and `tokens` are {technique.tokens}"
    if technique.layers not in (None, begun.count("layers.")):
        yield f"has {begun.count('layers.')} layers, and `layers` are {technique.layers}"
    if technique.mask_token not in (None, begun.mask_token):
        yield f"takes token {begun.mask_token} for a mask, and `mask_token` is {technique.mask_token}"
    if technique.steps and begun.sizes.get("norm_before_residual") and technique.layout != "speculators":
        yield f"adds its layer to normed features, which the layout {technique.layout} cannot say"
