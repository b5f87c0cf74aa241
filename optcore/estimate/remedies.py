"""What would make a stage hold less: changes of what causes it, each reckoned anew, so that what is said is true."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from optcore.estimate.drafting import draft_cost
from optcore.estimate.facts import ModelFacts
from optcore.estimate.training import Trained, training_memory, windows_cost
from optcore.estimate.work import Cost, Memory
from optcore.evaluate import AnyEvaluator
from optcore.references import Calibration
from optcore.techniques.draft import Draft
from optcore.techniques.training import Training

T = TypeVar("T", bound=BaseModel)

_UNASKED: tuple[str, dict[str, Any]] = (
    "use `scope: block` without `teacher_top_k`",
    {"scope": "block", "teacher_top_k": None},
)
_TRAINED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("use `scope: block`", {"scope": "block"}),
    _UNASKED,
    ("use `scope: scales`", {"scope": "scales"}),
    ("use `scope: lora`", {"scope": "lora"}),
    ("use `scope: lora` with `lora.base: nf4`", {"scope": "lora", "lora": {"base": "nf4"}}),
    ("use `lora.base: nf4`", {"lora": {"base": "nf4"}}),
    ("keep the answers with `teacher_top_k`", {"teacher_top_k": 32}),
    ("leave `gradient_checkpointing` on", {"gradient_checkpointing": True}),
    ("set `micro_batch: 1`", {"micro_batch": 1}),
)
_CALIBRATED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("use `rounding: nearest` with `smoothing: none`", {"rounding": "nearest", "smoothing": "none"}),
    ("use `rounding: nearest`", {"rounding": "nearest"}),
    ("use `smoothing: none`", {"smoothing": "none"}),
)


class Remedy(NamedTuple):
    """A change, as an imperative, and what the stage would hold with it."""

    said: str
    memory: Memory


Remedies = Callable[[], Iterable[Remedy]]
"""Asked for only where a stage does not fit."""


def of_training(trained: Trained) -> Iterator[Remedy]:
    """Of the steps."""
    for said, change in (*_TRAINED, ("halve `sequence_length`", _halved(trained.technique, "sequence_length"))):
        other = _changed(trained.technique, change)
        if other is None:
            continue
        is_alone = getattr(other, "teacher_top_k", None) or getattr(other, "scope", "") == "block"
        yield Remedy(
            said,
            training_memory(
                trained._replace(
                    technique=other,
                    teacher=None if is_alone else trained.teacher,
                    length=min(other.sequence_length, trained.length),
                    processes=1 if other.alone else trained.processes,
                )
            ),
        )


def of_windows(technique: Training, length: int, writer: ModelFacts) -> Iterator[Remedy]:
    """Of text that a model writes."""
    if other := _changed(technique, {"data": {"kind": "text"}}):
        yield Remedy("train on text as it is with `data: {kind: text}`", windows_cost(other, length, writer).memory)


def of_answers(technique: Training) -> Iterator[Remedy]:
    """Of a teacher that is asked once: layers by themselves have none."""
    said, change = _UNASKED
    if _changed(technique, change):
        yield Remedy(said, Memory())


def of_draft(technique: Draft, target: ModelFacts, length: int) -> Iterator[Remedy]:
    """Of a draft's steps."""
    vocabulary = {"vocabulary": max(1, min(technique.vocabulary or 32_000, target.vocabulary) // 2)}
    for said, change in (
        ("keep what the target computes with `features: kept`", {"features": "kept"}),
        ("name a smaller `vocabulary`", vocabulary),
        ("keep fewer `layers`", _halved(technique, "layers")),
    ):
        if other := _changed(technique, change):
            yield Remedy(said, draft_cost(other, target, length).memory)


def of_calibrated(cost: Callable[[T, Calibration], Cost], technique: T, calibration: Calibration) -> Iterator[Remedy]:
    """Of a stage that measures on calibration text."""
    for said, change in _CALIBRATED:
        if other := _changed(technique, change):
            yield Remedy(said, cost(other, calibration).memory)
    for said, name in (("use fewer calibration samples", "samples"), ("use shorter ones", "sequence_length")):
        if less := _changed(calibration, _halved(calibration, name)):
            yield Remedy(said, cost(technique, less).memory)


def of_measured(cost: Callable[[Sequence[AnyEvaluator]], Cost], evaluators: Sequence[AnyEvaluator]) -> Iterator[Remedy]:
    """Of a measurement."""
    for said, names in (
        ("measure fewer samples", ("samples", "prompts")),
        ("measure shorter ones", ("sequence_length", "prompt_tokens")),
    ):
        less = [
            _changed(one, {key: half for name in names for key, half in _halved(one, name).items()})
            for one in evaluators
        ]
        yield Remedy(said, cost([new or old for new, old in zip(less, evaluators, strict=True)]).memory)


def _halved(settings: BaseModel, name: str) -> dict[str, Any]:
    """Nothing of a setting that is not there, or has no number."""
    value = getattr(settings, name, None)
    return {name: value // 2} if isinstance(value, int) and value > 1 else {}


def _changed(settings: T, change: dict[str, Any]) -> T | None:
    """With other values; None where it has one of them, and where they do not go with the rest of it."""
    try:
        other = type(settings).model_validate({**settings.model_dump(), **_within(settings, change)})
    except ValidationError:
        return None
    is_new = bool(change) and all(getattr(other, name) != getattr(settings, name) for name in change)
    return other if is_new else None


def _within(settings: BaseModel, change: dict[str, Any]) -> dict[str, Any]:
    """A change of a part leaves the rest of that part."""
    return {
        name: {**own.model_dump(), **value}
        if isinstance(value, dict) and isinstance(own := getattr(settings, name, None), BaseModel)
        else value
        for name, value in change.items()
    }
