"""Where a job's result comes from: the recipe as it ran, what it was pinned to, and what vouches for the files."""

from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from api.comparison.differences import differences
from api.dashboard import recipe_text
from lathe.models import Artifact, Job
from optcore.manifest import SIGNATURE, Parent
from optcore.recipe import Recipe, recipe_from
from optcore.report import Report


@dataclass(frozen=True)
class RecipeLine:
    """A line of the recipe."""

    text: str
    pinned: bool
    """Whether the worker found it out: it is not what was submitted."""


@dataclass(frozen=True)
class RecipeText:
    """The recipe in its two forms."""

    lines: tuple[RecipeLine, ...]
    """Whole, with what the sources were pinned to where that is known."""
    own: str
    """Only what is not a default."""
    is_pinned: bool


@dataclass(frozen=True)
class Origin:
    """What the result was made from, and how that can be checked."""

    parents: tuple[Parent, ...]
    source_digest: str
    data_digest: str
    recipe_digest: str
    signed: bool
    environment: dict[str, str]


def recipe(job: Job) -> RecipeText:
    """The recipe of a job."""
    whole = recipe_from(job.resolved) if job.resolved else job.recipe
    text = whole.to_yaml()
    pinned = _pinned(job.recipe, whole, text)
    own = job.recipe.model_dump(mode="json", exclude_defaults=True)
    own["chain"] = [
        {"technique": each.technique, **entry} for each, entry in zip(job.recipe.chain, own["chain"], strict=True)
    ]
    return RecipeText(
        lines=tuple(RecipeLine(line, number in pinned) for number, line in enumerate(text.splitlines(), 1)),
        own=yaml.safe_dump(own, sort_keys=False, allow_unicode=True),
        is_pinned=job.resolved is not None,
    )


def origin(job: Job, files: Sequence[Artifact], report: Report | None) -> Origin | None:
    """None before there is a result."""
    if job.artifact_digest is None:
        return None
    return Origin(
        parents=report.lineage if report else (),
        source_digest=report.source_digest if report else "",
        data_digest=report.data_digest if report else "",
        recipe_digest=report.recipe_digest if report else "",
        signed=any(file.path == SIGNATURE for file in files),
        environment=dict(report.environment) if report else {},
    )


def _pinned(submitted: Recipe, whole: Recipe, text: str) -> set[int]:
    """The lines of `text`, which is `whole`, that say something else than was submitted.

    By the places of the documents, which takes time in their size alone; lines that are alike take its square.
    """
    if whole == submitted:
        return set()
    found = differences([each.model_dump(mode="json") for each in (submitted, whole)])
    return recipe_text.lines_of(text, [each.pointer for each in found])
