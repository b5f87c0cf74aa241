"""What can be known before any work: the stages of a recipe, its results, and whether they fit together."""

from typing import NamedTuple

from optcore.engines import ENGINES, loading
from optcore.errors import RecipeError
from optcore.export import AnyExport
from optcore.frozen import tag
from optcore.measures import check_measures
from optcore.recipe import Recipe
from optcore.references import REPO_ID_LIMIT
from optcore.search.contenders import Contender, contenders
from optcore.targets import belongs, check_target, targets
from optcore.techniques import Technique
from optcore.techniques.distilling import Distilling
from optcore.techniques.draft import Draft
from optcore.techniques.restructuring import Restructuring
from optcore.techniques.training import Training
from optcore.training_fit import check_labelled

_DENSE = frozenset({"dense", "unrotated"})
_LOST = {
    "sparse": "the mask of zeros",
    "factored": "the low rank",
    "palettized": "its tables and indices",
    "shared": "what numbers share",
    "tied": "what layers share",
    "exits": "the test of the exits",
    "windowed": "the attention window",
    "thresholded": "the thresholds of its inputs",
}
"""What is true of those very weights alone, by property, for people."""


class Result(NamedTuple):
    """One checkpoint that a recipe asks for."""

    name: str
    """Its folder below `also/`; empty for the main one."""
    scheme: str
    """Empty for the format that the last technique's gate settled on."""
    export: AnyExport


def results(recipe: Recipe) -> tuple[Result, ...]:
    """The main result, then every further format and target that go together."""
    main = Result("", "", recipe.target)
    more = [(scheme, export) for scheme in ("", *_also(recipe)) for export in (recipe.target, *recipe.also)]
    schemes = (getattr(technique, "scheme", "") for technique in reversed(recipe.chain))
    last = next((scheme for scheme in schemes if scheme), "mixed")
    return (
        main,
        *(
            Result(f"{scheme or last}-{tag(type(export))}", scheme, export)
            for scheme, export in more[1:]
            if not scheme or belongs(scheme, export)
        ),
    )


def _also(recipe: Recipe) -> tuple[str, ...]:
    """Further formats of the last technique."""
    also: tuple[str, ...] = getattr(recipe.chain[-1], "also", ())
    return also


def export_stage(recipe: Recipe, result: Result) -> str:
    """Name of the stage that writes a result."""
    return _result_stage(f"{len(recipe.chain) + 1}-export", result)


def evaluate_stage(recipe: Recipe, result: Result) -> str:
    """Name of the stage that measures a result."""
    return _result_stage(f"{len(recipe.chain) + 2}-evaluate", result)


def serve_stage(recipe: Recipe, result: Result) -> str:
    """Name of the stage that measures a result's files, where several results share what is measured of the rest."""
    return _result_stage(f"{len(recipe.chain) + 3}-serve", result)


def _result_stage(stage: str, result: Result) -> str:
    return f"{stage}-{result.name}" if result.name else stage


def stage_names(recipe: Recipe) -> tuple[str, ...]:
    """The stages of a run in order; a gate's fallbacks are added when they are needed."""
    names = ["0-fetch"]
    for number, technique in enumerate(recipe.chain, start=1):
        name = technique_stage(number, technique)
        names += [*preparing_stages(name, technique), name]
        if technique.gate:
            names.append(gate_stage(name))
        if number in measured_between(recipe) | measured_drafts(recipe):
            names.append(step_stage(name))
        if isinstance(technique, Restructuring) and technique.rival:
            names += [rival_stage(name), step_stage(rival_stage(name))]
    made = results(recipe)
    for result in made:
        names += [export_stage(recipe, result), evaluate_stage(recipe, result)]
        names += [serve_stage(recipe, result)] if len(made) > 1 else []
    return tuple(names)


def technique_stage(number: int, technique: Technique, attempt: int = 0) -> str:
    """Name of a technique's stage; `attempt` counts the fallbacks."""
    name = f"{number}-{tag(type(technique))}"
    return f"{name}-fallback{attempt}" if attempt else name


def preparing_stages(name: str, technique: Technique) -> tuple[str, ...]:
    """Names of the stages before a training technique's own, which reads what they leave: its windows, and what a
    teacher says of them, or what a target computes. Whether a draft can be made is asked first of all."""
    if not isinstance(technique, Training) or not technique.steps:
        return ()
    if isinstance(technique, Draft):
        kept = (features_stage(name),) if technique.features == "kept" else ()
        return plan_stage(name), data_stage(name), *kept
    asked_once = isinstance(technique, Distilling) and technique.teacher_top_k
    return (data_stage(name), teacher_stage(name)) if asked_once else (data_stage(name),)


def plan_stage(technique_stage: str) -> str:
    """Name of the stage that refuses a draft which cannot be made, before text is prepared for it."""
    return f"{technique_stage}-plan"


def data_stage(technique_stage: str) -> str:
    """Name of the stage that prepares a technique's training windows."""
    return f"{technique_stage}-data"


def teacher_stage(technique_stage: str) -> str:
    """Name of the stage that asks a technique's teacher."""
    return f"{technique_stage}-teacher"


def features_stage(technique_stage: str) -> str:
    """Name of the stage that keeps what a target computes, for a draft to read."""
    return f"{technique_stage}-features"


def step_stage(technique_stage: str) -> str:
    """Name of the stage that measures what a technique left on the way to the result."""
    return f"{technique_stage}-measure"


def rival_stage(technique_stage: str) -> str:
    """Name of the stage that makes what a technique must beat."""
    return f"{technique_stage}-rival"


def measured_between(recipe: Recipe) -> frozenset[int]:
    """Numbers of the entries, from 1, after which the model is measured: those of a chain that restructures, but for
    the last one that changes it, whose result is measured in its target format, and for what is quantized and not
    packed yet."""
    if not any(isinstance(technique, Restructuring) for technique in recipe.chain):
        return frozenset()
    properties, found = _DENSE, set[int]()
    changing = [(number, one) for number, one in enumerate(recipe.chain, start=1) if not one.stands_beside]
    for number, technique in changing[:-1]:
        properties = (properties | technique.makes) - technique.removes
        if "quantized" not in properties:
            found.add(number)
    return frozenset(found)


def measured_drafts(recipe: Recipe) -> frozenset[int]:
    """Numbers of the entries, from 1, whose draft is measured right when it is made, since a later entry changes the
    model that it guesses for. N-grams guess from the text alone, and cannot lose touch."""
    last = max((number for number, one in enumerate(recipe.chain, start=1) if not one.stands_beside), default=0)
    return frozenset(
        number
        for number, one in enumerate(recipe.chain[:last], start=1)
        if isinstance(one, Draft) and one.method != "ngram"
    )


def gate_stage(technique_stage: str) -> str:
    """Name of the stage that measures a technique's result."""
    return f"{technique_stage}-gate"


def screen_stage(recipe: Recipe) -> str:
    """Name of the stage that measures a candidate of a race before anything is written for it."""
    return f"{technique_stage(len(recipe.chain), recipe.chain[-1])}-screen"


def check(recipe: Recipe) -> None:
    """Refuse a recipe whose parts do not fit, before anything is downloaded: each candidate of one that stands for
    several chains. Raises `RecipeError`."""
    fitting(recipe)


def fitting(recipe: Recipe) -> tuple[Contender, ...]:
    """The candidates of a recipe; the planner's own as far as they fit, of which there must be one. Raises
    `RecipeError`."""
    if not recipe.is_race:
        _check_chain(recipe)
    fit, refused = [], list[RecipeError]()
    for contender in contenders(recipe):
        try:
            _check_chain(contender.recipe)
        except RecipeError as error:
            if not contender.is_planned:
                raise contender.located(error) from error
            refused.append(error)
        else:
            fit.append(contender)
    if not fit and refused:
        raise RecipeError(
            f"no chain of the planner fits: {refused[0].message}",
            remedy=f"{refused[0].remedy}; or list chains in `objective.candidates`",
            field="/objective",
        )
    return tuple(fit)


def _check_chain(recipe: Recipe) -> None:
    properties = _DENSE
    for number, technique in enumerate(recipe.chain):
        if missing := technique.needs - properties:
            raise RecipeError(
                f"{technique.title} needs a model that is {', '.join(sorted(missing))}; "
                f"after the stages before it the model is {', '.join(sorted(properties))}",
                remedy="change the order of the chain, or remove this entry",
                field=f"/chain/{number}",
            )
        lost = min((properties & _LOST.keys()) - _kept(technique), default=None)
        if lost and not technique.stands_beside:
            remedy, last = technique.how_to_keep.get(lost), "let the entry that made it be the last of the chain"
            raise RecipeError(
                f"{technique.title} changes the model, and {_LOST[lost]} would be lost",
                remedy=f"{remedy}, or {last}" if remedy else last,
                field=f"/chain/{number}",
            )
        properties = (properties | technique.makes) - technique.removes
    if "quantized" not in properties:
        _check_unquantized(recipe)
    if "conditional" in properties:
        check_conditions(recipe, next(technique for technique in recipe.chain if "conditional" in technique.makes))
    _check_draft(recipe)
    _check_also(recipe)
    _check_places(recipe)
    check_labelled(recipe)
    check_measures(recipe)
    check_target(recipe)


def _kept(technique: Technique) -> frozenset[str]:
    """Forms of weights that a technique keeps, whatever its gate leads to."""
    return technique.keeps.intersection(*(other.keeps for other in technique.alternatives))


def _check_unquantized(recipe: Recipe) -> None:
    for export in (recipe.target, *recipe.also):
        if not export.takes_unquantized:
            raise RecipeError(
                f"nothing in the chain quantizes, and {export.title} holds quantized weights only",
                remedy="add a `ptq` entry, or `target: {format: dense}`",
                field="/chain",
            )


def check_conditions(recipe: Recipe, maker: Technique) -> None:
    """Refuse targets without a place for the conditions that an entry of the chain makes. Raises `RecipeError`."""
    for place, export in targets(recipe):
        if not export.keeps_conditions:
            engines = " and ".join(ENGINES[engine] for engine in loading(tag(type(export)), ()))
            raise RecipeError(
                f"{maker.title} says in conditional.json how the model is to be run, which {export.title} has no place "
                f"for: {engines} would run all of it for every token",
                remedy=f"leave `{tag(type(maker))}` out, or use `target: {{format: dense}}`, which keeps the file",
                field=f"{place}/format",
            )


def _check_draft(recipe: Recipe) -> None:
    drafts = {number: technique for number, technique in enumerate(recipe.chain) if isinstance(technique, Draft)}
    if len(drafts) > 1:
        raise RecipeError(
            "the chain makes two drafts, and a result has one",
            remedy="leave one of them out, or compare them in two jobs: what they share is done once",
            field=f"/chain/{max(drafts)}",
        )
    for number, technique in enumerate(recipe.chain):
        if any(draft.reads_states and place < number for place, draft in drafts.items()) and not technique.keeps_states:
            raise RecipeError(
                f"{technique.title} changes the hidden states that the draft before it reads",
                remedy="move `draft` behind it",
                field=f"/chain/{number}",
            )


def _check_also(recipe: Recipe) -> None:
    for number, technique in enumerate(recipe.chain[:-1]):
        if getattr(technique, "also", ()):
            raise RecipeError(
                "`also` makes several results, and a technique follows that goes on with one",
                remedy="leave `also` to the last entry of the chain",
                field=f"/chain/{number}/also",
            )
    formats = [tag(type(export)) for export in (recipe.target, *recipe.also)]
    if twice := next((name for name in formats if formats.count(name) > 1), None):
        raise RecipeError(
            f"the target {twice} is named twice, and both would be written to one folder",
            remedy="name every format once in `target` and `also`",
            field="/also",
        )
    for scheme in _also(recipe):
        if not any(result.scheme == scheme for result in results(recipe)):
            raise RecipeError(
                f"no target of the recipe can hold {scheme}",
                remedy="add a target that can to the recipe's `also`",
                field=f"/chain/{len(recipe.chain) - 1}/also",
            )


def _check_places(recipe: Recipe) -> None:
    """Names on the Hub that would be refused or shared after hours of work."""
    places = [recipe.publish.place(result.name) for result in results(recipe)] if recipe.publish else []
    if len(set(places)) < len(places):
        raise RecipeError(
            "two results would be published to one place",
            remedy="name another branch, or another `layout`",
            field="/publish/revision",
        )
    if long := next((place.repo_id for place in places if len(place.repo_id) > REPO_ID_LIMIT), None):
        raise RecipeError(
            f"the repository name {long} is longer than {REPO_ID_LIMIT} characters",
            remedy="name a shorter one, or another `layout`",
            field="/publish/repo_id",
        )
