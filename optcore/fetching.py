"""What a recipe needs from outside: asked for before anything is done, and pinned to the commits that came."""

from collections.abc import Iterator
from typing import Any

from optcore.evaluate import Acceptance, Classification, Fidelity, LongContext
from optcore.frozen import Frozen
from optcore.measures import evaluators
from optcore.places import rewritten
from optcore.recipe import Recipe
from optcore.schemes import PRESETS
from optcore.stage import FetchWork, Grouping, Windowing
from optcore.targets import targets
from optcore.techniques.attention_window import AttentionWindow
from optcore.techniques.merge import Merge
from optcore.techniques.prune import Prune
from optcore.techniques.ptq import Ptq
from optcore.techniques.training import Training


def fetch_work(recipe: Recipe, *, is_one_of_several: bool = False) -> FetchWork:
    """What a recipe needs from outside, and what there must be enough of. Several that differ in nothing else share
    one fetch: whether groups divide sizes is then left to each of them, whose refusal costs the others nothing."""
    chain = list(enumerate(recipe.chain))
    return FetchWork(
        model=recipe.model,
        calibration=recipe.calibration,
        evaluations=() if learns_labels(recipe) else tuple(_lengths(recipe)),
        classifications=tuple(each for each in recipe.evaluate if isinstance(each, Classification)),
        models={f"/chain/{n}/{name}": ref for n, one in chain for name, ref in one.models.items()},
        # what an entry before it would leave is not known yet: a later merge is checked when its turn comes
        alike=tuple(f"/chain/0/{name}" for one in recipe.chain[:1] if isinstance(one, Merge) for name in one.models),
        drafts={f"/chain/{n}/{name}": ref for n, one in chain for name, ref in one.drafts.items()},
        texts={f"/chain/{n}/{name}": needed for n, one in chain for name, needed in one.texts.items()},
        grouping=None if is_one_of_several else _grouping(recipe),
        windowing=_windowing(recipe),
    )


def _grouping(recipe: Recipe) -> Grouping | None:
    """Of the first entry that quantizes, where the sizes that it meets follow from the source's alone; None where no
    late refusal would lose work: its own, of groups behind nothing, comes at once. Fallbacks may never be needed."""
    for number, entry in enumerate(recipe.chain):
        if isinstance(entry, Ptq):
            before = recipe.chain[:number]
            prunes = tuple(one for one in before if isinstance(one, Prune))
            exports = {place: export for place, export in targets(recipe) if export.sized_schemes & set(entry.schemes)}
            asked = Grouping(
                prunes=prunes,
                ptq=entry.model_copy(update={"gate": None, "fallback": ()}),
                place=f"/chain/{number}",
                exports=exports,
            )
            has_groups = any(PRESETS[name].weights.group_size for name in entry.schemes)
            is_known = sum(bool(one.sliced) for one in prunes) <= 1
            return asked if is_known and ((before and has_groups) or exports) else None
        if not entry.keeps_sizes and (not isinstance(entry, Prune) or entry.target):
            return None
    return None


def _windowing(recipe: Recipe) -> Windowing | None:
    """Of the first entry that may need conditions though it makes none by itself, where the source tells and a target
    has no place for them."""
    exports = {place: export for place, export in targets(recipe) if not export.keeps_conditions}
    for entry in recipe.chain if exports else ():
        if isinstance(entry, AttentionWindow):
            is_settled = "conditional" in entry.makes
            return None if is_settled else Windowing(technique=entry.model_copy(update={"gate": None}), exports=exports)
        if not entry.keeps_sizes and (not isinstance(entry, Prune) or entry.depth or entry.target):
            return None
    return None


def _lengths(recipe: Recipe) -> Iterator[int]:
    for evaluator in evaluators(recipe):
        if isinstance(evaluator, Fidelity | LongContext):
            yield evaluator.sequence_length
        elif isinstance(evaluator, Acceptance):
            yield evaluator.prompt_tokens


def longest_of(fetched: dict[str, Any]) -> int:
    """Tokens that the chain's result holds: of its student, where it has one."""
    students = [found["longest_sequence"] for place, found in fetched["models"].items() if place.endswith("/student")]
    longest: int = [fetched["longest_sequence"], *students][-1]
    return longest


def learns_labels(recipe: Recipe) -> bool:
    """Whether the chain makes a classifier, of an encoder that may be none yet."""
    return any(isinstance(one, Training) and one.data.kind == "labelled" for one in recipe.chain)


def commits_of(fetched: dict[str, Any]) -> dict[str, str | None]:
    """The commits that were fetched, by the place in the recipe; None of what has none."""
    kinds = ("models", "drafts", "texts")
    commits = {place: found["revision"] for kind in kinds for place, found in fetched[kind].items()}
    return commits | {"/model": fetched["model_revision"], "/calibration": fetched["data_revision"]}


def pinned(recipe: Recipe, commits: dict[str, str | None]) -> Recipe:
    """The recipe with commits in the place of branches and tags."""

    def at(value: Any, pointer: str) -> Any:
        commit = commits.get(pointer)
        return value.model_copy(update={"revision": commit}) if commit and isinstance(value, Frozen) else value

    return rewritten(recipe, at)
