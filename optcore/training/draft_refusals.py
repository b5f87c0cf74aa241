"""What would end a draft's stage, found before text is prepared for it: that takes hours, and this seconds."""

from typing import TYPE_CHECKING

from optcore.attention import attention_of
from optcore.drafts.folder import read_draft
from optcore.errors import RecipeError
from optcore.speculative.outline import TargetOutline
from optcore.speculative.target import TargetEnds
from optcore.training.draft_plan import planned_draft, require_head, target_outline
from optcore.training.memory import check_draft_memory
from optcore.training.ranks import Ranks
from optcore.training.small_model import kept_layers

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.draft import Draft


def check_draft_plan(run: "Run", technique: "Draft") -> None:
    """Refuse a draft that cannot be trained for the model of `run.checkpoint`, or not written; what it will be goes
    into `run.results`.

    Of the target only its embeddings and its head are loaded. Raises `RecipeError`, `OutOfMemory`,
    `UnknownArchitecture`, and `BadCheckpoint` or `UnsafeCheckpoint` for what it begins with.
    """
    if technique.method == "model":
        run.results["draft"] = {"parameters": _check_small_model(run, technique)}
        return
    plan, ranks = planned_draft(run, technique), Ranks(technique.batch)
    if technique.steps:
        plan.check_memory(technique, ranks, is_kept=technique.features == "kept")
    ends = TargetEnds(run.checkpoint, plan.taps, ranks.device)
    require_head(ends, run)
    if plan.begun:
        read_draft(run.models[0], ends)
    run.results["draft"] = {"parameters": plan.parameters(technique), "taps": list(plan.taps)}


def _check_small_model(run: "Run", technique: "Draft") -> int:
    """Parameters that would train: about so many where layers of unequal size are left out."""
    target, ranks = target_outline(run), Ranks(technique.batch)
    begun = TargetOutline(run.models[0]) if run.models else target
    if attention_of(begun.model.config.to_dict()).recurrent:
        raise RecipeError(
            f"{type(begun.model).__name__} keeps a recurrent state, which cannot take back what was guessed in vain",
            remedy="choose another `method`, or `start` with a small model whose layers keep keys and values only",
            field=f"{run.place}/method",
        )
    parameters = begun.parameters if run.models else _left_of(target, technique, run)
    if technique.steps:
        remedy = "keep fewer `layers`, `start` with a smaller model, or use a larger machine"
        check_draft_memory(target.parameters, parameters, ranks.device, remedy)
    for model in (run.checkpoint, *run.models):
        require_head(TargetEnds(model, device=ranks.device), run)
    return parameters


def _left_of(target: TargetOutline, technique: "Draft", run: "Run") -> int:
    """Parameters of the target with fewer layers."""
    kept, inside = kept_layers(technique, target.layers), target.parameters - target.ends_parameters
    if kept >= target.layers:
        raise RecipeError(
            f"a draft of {kept} of the model's {target.layers} layers would not be smaller",
            remedy="keep fewer `layers`, or choose another `method`",
            field=f"{run.place}/layers",
        )
    return target.ends_parameters + inside * kept // target.layers
