"""Whether what is measured stays out of what is trained on, by the files that came: one text can be named in many ways.

Text without labels is held out where it is read: one block of tokens in four (`optcore.calibration.text`), which is the
same blocks only for who reads the same files in the same order. What is read in another way is refused here.
"""

from collections.abc import Iterator, Sequence
from filecmp import cmp
from pathlib import Path
from typing import Any

from optcore.errors import RecipeError
from optcore.evaluate import Classification, Fidelity
from optcore.measures import gate_evaluator, measured_on_training
from optcore.places import attempts
from optcore.recipe import Recipe
from optcore.report import Task
from optcore.techniques.training import Training


def share_text(files: Sequence[Path], others: Sequence[Path]) -> bool:
    """Whether one of the files is also one of the others: by another path, or as a copy."""
    return any(_is_same(one, other) for one in files for other in others)


def check_held_out(recipe: Recipe, task: Task, fetched: dict[str, Any]) -> None:
    """Refuse training on files that are measured, where what is measured cannot be left out. Raises `RecipeError`.

    `fetched` is what the fetch left.
    """
    own = tuple(map(Path, fetched["data_files"]))
    measures_text = _measures_text(recipe, task)
    for place, technique in _trainings(recipe):
        found = fetched["texts"].get(f"{place}/data")
        files = tuple(map(Path, found["files"])) if found else own
        if technique.data.kind == "labelled":
            _check_labelled(recipe, files, own)
        elif technique.data.is_text and measures_text and share_text(files, own):
            _check_alike(recipe, technique, files, own, f"{place}/data")


def _trainings(recipe: Recipe) -> Iterator[tuple[str, Training]]:
    """All that may train, by their place in the recipe."""
    for number, entry in enumerate(recipe.chain):
        for place, technique in attempts(number, entry):
            if isinstance(technique, Training):
                yield place, technique


def _measures_text(recipe: Recipe, task: Task) -> bool:
    """Whether anything is measured on the text that calibration's is read from."""
    gates = (technique.gate for technique in recipe.chain if technique.gate)
    evaluators = (*recipe.evaluate, *(gate_evaluator(recipe, gate.metric, task) for gate in gates))
    return task in Fidelity.tasks and any(isinstance(each, Fidelity) for each in evaluators)


def _check_labelled(recipe: Recipe, files: Sequence[Path], own: Sequence[Path]) -> None:
    for number, evaluator in enumerate(recipe.evaluate):
        if isinstance(evaluator, Classification):
            measured = (Path(evaluator.path),) if evaluator.path else own
            if share_text(files, measured):
                raise measured_on_training(f"/evaluate/{number}/path")


def _check_alike(recipe: Recipe, technique: Training, files: Sequence[Path], own: Sequence[Path], field: str) -> None:
    data, column = technique.data, recipe.calibration.column
    if data.kind == "chat" or (data.kind == "answers" and data.is_own):
        why = "conversations are not read in the blocks of text"
    elif data.is_own and data.column not in (None, column):
        why = "another column is read than the one"
    elif not all(map(_is_same, files, own)):
        why = "they are not read in the order"
    else:
        return
    raise RecipeError(
        f"training reads files that evaluation text is held out from, and {why} that it is held out by",
        remedy="train on other files, or name other ones in `calibration`",
        field=field,
    )


def _is_same(one: Path, other: Path) -> bool:
    return one.samefile(other) or cmp(one, other, shallow=False)
