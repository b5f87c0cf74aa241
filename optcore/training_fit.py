"""Whether models, teachers and data of a chain's training fit each other: answered before any of it is done."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from optcore.errors import RecipeError
from optcore.places import attempts
from optcore.recipe import Recipe
from optcore.report import Task
from optcore.techniques import Technique
from optcore.techniques.distilling import Distilling
from optcore.techniques.draft import Draft
from optcore.techniques.training import Training


class Known(NamedTuple):
    """What a checkpoint is, as far as training asks."""

    task: Task
    labels: tuple[str, ...] = ()
    """A classifier's, by number; empty where there are none, or where data that nobody has read yet names them."""


class Models(NamedTuple):
    """The models that an entry of the chain can meet."""

    source: Known
    chain: Known
    """What the entries before it made."""
    named: Mapping[str, Known]
    """Teachers and students that the recipe names, by JSON Pointer."""


def check_labelled(recipe: Recipe) -> None:
    """Refuse ways to train that know tokens only, on labelled texts. Raises `RecipeError`."""
    for number, entry in enumerate(recipe.chain):
        for place, technique in attempts(number, entry):
            if not isinstance(technique, Training) or technique.data.kind != "labelled":
                continue
            asked = {name: getattr(technique, name, None) for name in ("scope", "teacher_top_k", "on_policy")}
            if asked["scope"] != "block":
                del asked["scope"]
            if name := next((name for name, value in asked.items() if value), None):
                said = "`scope: block`" if name == "scope" else f"`{name}`"
                raise RecipeError(
                    f"{said} goes by the tokens of a text, and labelled texts have one label each",
                    remedy=f"leave {said} out",
                    field=f"{place}/{name}",
                )


def check_models(recipe: Recipe, fetched: Mapping[str, Any]) -> None:
    """Refuse training whose data, teacher or loss is for another kind of model, and a gate on what has no source.

    `fetched` is what the fetch left. Raises `RecipeError`.
    """
    source = _known(fetched)
    models = Models(source, source, {place: _known(found) for place, found in fetched["models"].items()})
    for number, entry in enumerate(recipe.chain):
        for place, technique in attempts(number, entry):
            after = _trained(technique, place, models) if isinstance(technique, Training) else models.chain
            _check_gate(technique, place, source, after)
            if technique is entry:
                left = after
        models = models._replace(chain=left)


def check_same_labels(student: Sequence[str], teacher: Sequence[str], field: str = "/chain") -> None:
    """Refuse a teacher that numbers labels in another way than its student. Raises `RecipeError`."""
    if tuple(student) != tuple(teacher):
        raise RecipeError(
            f"the teacher's labels are {_listed(teacher)}, and the student's {_listed(student)}",
            remedy="name a teacher with the same labels in the same order (`id2label` in its config.json), or a student"
            " without a head, which takes over the teacher's labels",
            field=field,
        )


def _known(fetched: Mapping[str, Any]) -> Known:
    return Known(fetched["task"], tuple(fetched["labels"]))


def _trained(technique: Training, place: str, models: Models) -> Known:
    """What training leaves, once it is known to fit."""
    if isinstance(technique, Draft):
        _check_writes(place, models.chain)
        return models.chain
    student, teacher = models.named.get(f"{place}/student", models.chain), _teacher(technique, place, models)
    if technique.data.kind == "labelled" and student.task == "fill-mask" and "dense" in technique.needs:
        student = Known("text-classification", teacher.labels if teacher else ())  # it is given a head
    _check_data(technique, place, student)
    _check_loss(technique, place, student)
    if teacher and teacher.task != student.task:
        raise RecipeError(
            f"the teacher is for {teacher.task}, and what learns from it for {student.task}",
            remedy="name a teacher of the student's kind, or train without one (`finetune`, `qat`)",
            field=f"{place}/teacher",
        )
    if teacher and teacher.labels and student.labels:
        check_same_labels(student.labels, teacher.labels, f"{place}/teacher")
    return student


def _teacher(technique: Training, place: str, models: Models) -> Known | None:
    if not isinstance(technique, Distilling):
        return None
    given = models.source if technique.teacher == "source" else models.chain
    return models.named.get(f"{place}/teacher", given)


def _check_writes(place: str, target: Known) -> None:
    if target.task != "text-generation":
        raise RecipeError(
            f"a draft guesses what a model writes next, and this one is for {target.task}",
            remedy="leave `draft` out, or choose a decoder-only language model",
            field=place,
        )


def _check_data(technique: Training, place: str, student: Known) -> None:
    """Labelled texts are for classifiers, and everything else for models of tokens."""
    kind, is_classifier = technique.data.kind, student.task == "text-classification"
    if (kind == "labelled") == is_classifier:
        return
    field = f"{place}/data/kind"
    if is_classifier:
        remedy = "give it `data: {kind: labelled, ...}`"
        raise RecipeError(
            f"this model labels texts, and data of `kind: {kind}` has no labels", remedy=remedy, field=field
        )
    if student.task == "fill-mask":
        remedy = "train it on labelled texts before it is quantized: `finetune` or `distill` give it one"
        raise RecipeError(
            "this model has no head for labels, and a quantized one is given none", remedy=remedy, field=field
        )
    remedy = "choose another `kind` of data, or a BERT-style encoder"
    said = f"labelled texts train models that label texts, and this one is for {student.task}"
    raise RecipeError(said, remedy=remedy, field=field)


def _check_loss(technique: Training, place: str, student: Known) -> None:
    """A masked language model sees every token that it would be asked for: no token of training windows is masked."""
    if student.task != "fill-mask" or getattr(technique, "scope", None) == "block":
        return
    losses = technique.losses if isinstance(technique, Distilling) else ()
    if losses and all(loss.kind != "cross_entropy" for loss in losses):
        return
    raise RecipeError(
        "cross-entropy would train this masked language model to copy the text that it sees",
        remedy="distill it (`forward_kl` alone), or train it on labelled texts",
        field=f"{place}/losses" if losses else place,
    )


def _check_gate(technique: Technique, place: str, source: Known, after: Known) -> None:
    """Of a classifier that the chain makes of another model."""
    if technique.gate is None or source.task != "fill-mask" or after.task != "text-classification":
        return
    if technique.gate.metric == "agreement":
        raise RecipeError(
            "the source has no head for labels, so there is nothing that the result could agree with",
            remedy="gate on `accuracy`",
            field=f"{place}/gate/metric",
        )


def _listed(labels: Sequence[str]) -> str:
    shown = ", ".join(f"{number} ({name})" for number, name in enumerate(labels[:10]))
    return f"{shown} and {len(labels) - 10} more" if len(labels) > 10 else shown or "unknown"
