"""Chains whose models, teachers, data and losses do not fit each other are refused before any work."""

from typing import Any

import pytest

from optcore.errors import RecipeError
from optcore.plan import check
from optcore.recipe import Recipe, recipe_from
from optcore.training_fit import check_models

LABELLED = {"kind": "labelled", "path": "a.jsonl"}
FINETUNE, QAD, QAT = ({"technique": name, "data": LABELLED} for name in ("finetune", "qad", "qat"))
DISTILL, HEAL = ({"technique": name, "data": LABELLED} for name in ("distill", "heal"))
PTQ = {"technique": "ptq", "scheme": "int8"}
OTHER = {"id": "owner/other"}


def known(task: str, labels: str = "") -> dict[str, Any]:
    """What the fetch leaves of a model."""
    return {"task": task, "labels": labels.split()}


TEXT, MASKED, LABELS = known("text-generation"), known("fill-mask"), known("text-classification", "yes no")


def recipe(*chain: dict[str, Any]) -> Recipe:
    return recipe_from(
        {
            "model": {"path": "m"},
            "chain": list(chain),
            "target": {"format": "dense"},
            "evaluate": [{"evaluator": "classification", "path": "b.jsonl"}],
        }
    )


@pytest.mark.parametrize(
    ("chain", "field"),
    [
        ([PTQ, {**QAD, "scope": "block"}], "/chain/1/scope"),
        ([PTQ, {**QAT, "scope": "block"}], "/chain/1/scope"),
        ([PTQ, {**QAD, "teacher_top_k": 4}], "/chain/1/teacher_top_k"),
        ([{**DISTILL, "teacher_top_k": 4}], "/chain/0/teacher_top_k"),
        ([{**DISTILL, "on_policy": 0.5}], "/chain/0/on_policy"),
        (
            [
                {
                    **PTQ,
                    "gate": {"metric": "accuracy", "min": 0.5, "on_fail": "fallback"},
                    "fallback": [{**QAD, "teacher_top_k": 4}],
                }
            ],
            "/chain/0/fallback/0/teacher_top_k",
        ),
    ],
)
def test_what_knows_tokens_only_is_not_for_labelled_texts(chain: list[dict[str, Any]], field: str) -> None:
    with pytest.raises(RecipeError, match="labelled texts have one label each") as caught:
        check(recipe(*chain))
    assert caught.value.field == field
    assert caught.value.remedy


REFUSED: dict[str, tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any], str, str]] = {
    "text for a classifier": (LABELS, [PTQ, {"technique": "qad"}], {}, "/chain/1/data/kind", "has no labels"),
    "text after a head": (MASKED, [FINETUNE, {"technique": "finetune"}], {}, "/chain/1/data/kind", "has no labels"),
    "labels for a language model": (TEXT, [FINETUNE], {}, "/chain/0/data/kind", "this one is for text-generation"),
    "labels for a quantized encoder": (MASKED, [PTQ, QAT], {}, "/chain/1/data/kind", "a quantized one is given none"),
    "a teacher without a head": (MASKED, [DISTILL], {}, "/chain/0/teacher", "the teacher is for fill-mask"),
    "a teacher in another order": (
        LABELS,
        [{**DISTILL, "teacher": OTHER}],
        {"/chain/0/teacher": known("text-classification", "no yes")},
        "/chain/0/teacher",
        r"the teacher's labels are 0 \(no\), 1 \(yes\), and the student's 0 \(yes\), 1 \(no\)",
    ),
    "a student in another order": (
        LABELS,
        [{**DISTILL, "student": OTHER}],
        {"/chain/0/student": known("text-classification", "no yes")},
        "/chain/0/teacher",
        "the teacher's labels",
    ),
    "a fallback's teacher": (
        LABELS,
        [
            {
                **PTQ,
                "gate": {"metric": "accuracy", "min": 0.5, "on_fail": "fallback"},
                "fallback": [{**QAD, "teacher": OTHER}],
            }
        ],
        {"/chain/0/fallback/0/teacher": known("text-classification", "a b c")},
        "/chain/0/fallback/0/teacher",
        "the teacher's labels",
    ),
    "text for a masked model": (MASKED, [{"technique": "finetune"}], {}, "/chain/0", "copy the text that it sees"),
    "text for a quantized masked model": (MASKED, [PTQ, {"technique": "qat"}], {}, "/chain/1", "copy the text"),
    "a term of text for a masked model": (
        MASKED,
        [PTQ, {"technique": "qad", "losses": [{"kind": "forward_kl"}, {"kind": "cross_entropy"}]}],
        {},
        "/chain/1/losses",
        "copy the text",
    ),
    "agreement with no head": (
        MASKED,
        [FINETUNE, {**PTQ, "gate": {"metric": "agreement", "min": 0.99}}],
        {},
        "/chain/1/gate/metric",
        "the source has no head for labels",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_once_the_models_are_known(name: str) -> None:
    source, chain, models, field, said = REFUSED[name]
    with pytest.raises(RecipeError, match=said) as caught:
        check_models(recipe(*chain), {**source, "models": models})
    assert caught.value.field == field
    assert caught.value.remedy


FITS: dict[str, tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]] = {
    "a classifier, quantized": (LABELS, [FINETUNE, PTQ, QAD], {}),
    "agreement with a classifier": (LABELS, [{**PTQ, "gate": {"metric": "agreement", "min": 0.99}}], {}),
    "a head, twice, then quantized": (MASKED, [FINETUNE, FINETUNE, PTQ, QAD], {}),
    "accuracy of a new head": (MASKED, [{**FINETUNE, "gate": {"metric": "accuracy", "min": 0.9}}], {}),
    "a student without a head": (LABELS, [{**DISTILL, "student": OTHER}], {"/chain/0/student": MASKED}),
    "a teacher with one": (MASKED, [{**HEAL, "teacher": OTHER}], {"/chain/0/teacher": LABELS}),
    "a masked model by its own words": (MASKED, [PTQ, {"technique": "qad"}], {}),
    "a masked model by its layers": (MASKED, [PTQ, {"technique": "qat", "scope": "block"}], {}),
    "a masked model, then a head": (MASKED, [{"technique": "distill", "teacher": OTHER}, FINETUNE], {
        "/chain/0/teacher": MASKED
    }),
    "a language model": (TEXT, [{"technique": "finetune"}, PTQ, {"technique": "qat"}], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FITS)
def test_what_fits_is_let_through(name: str) -> None:
    source, chain, models = FITS[name]
    check(recipe(*chain))
    check_models(recipe(*chain), {**source, "models": models})
