"""A student and its loss: what a batch adds to it, and what a validation says of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.classifiers import MakeClassifier
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from fixtures.training import training_run
from pydantic import TypeAdapter

from optcore.techniques import Distill
from optcore.techniques.losses import Losses
from optcore.training.answers import keep_answers
from optcore.training.loop import judge
from optcore.training.student import Student
from optcore.training.teacher import LiveTeacher, kept_outputs
from optcore.training.trainee import Trainee, inputs_of
from optcore.training.windows import LEARNED, PADDING, Batch

CPU = torch.device("cpu")
LOSSES: TypeAdapter[Any] = TypeAdapter(Losses)
KL, STATES = ({"kind": "forward_kl"},), ({"kind": "hidden_mse"},)


def _tokens(count: int, length: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(5, vocabulary, (count, length), generator=torch.Generator().manual_seed(1))


def test_a_batch_of_which_nothing_counts_is_measured_by_the_same_names(tiny_model: MakeModel) -> None:
    """Processes add up what they measured in step, in one order."""
    folder, tokens_BT = tiny_model("Llama"), _tokens(2, 8, 2048)
    for teacher in (None, LiveTeacher(folder, CPU)):
        trainee = Trainee(Student(folder), LOSSES.validate_python(KL), teacher, seed=0)
        found, empty = (
            trainee(Batch(tokens_BT, torch.full((2, 8), flag, dtype=torch.uint8)), [0, 1]) for flag in (LEARNED, 0)
        )
        assert tuple(found) == tuple(empty) == trainee.measures
        assert found["tokens"] == 14
        assert not any(empty.values())
        assert trainee.measure in found


def test_a_divergence_that_is_no_number_is_no_better_than_any() -> None:
    """The nats of the text, lower than any divergence or not, are no substitute."""
    assert judge({"cross_entropy": 0.1}, "kl") > judge({"kl": 5.0, "cross_entropy": 9.0}, "kl")
    assert judge({"cross_entropy": 0.1}, "cross_entropy") == 0.1


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_student_that_says_what_its_teacher_said_is_measured_at_zero(
    temperature: float, stdlib_model: Path, tmp_path: Path
) -> None:
    """At the temperature that the answers were taken at."""
    losses = [{"kind": "forward_kl", "temperature": temperature}]
    settings = {"steps": 1, "batch": 2, "sequence_length": 32, "validation": {"samples": 2}, "learning_rate": 1e-6}
    technique = Distill.model_validate({**settings, "losses": losses, "teacher_top_k": 8})
    run = training_run(technique, stdlib_model, stdlib_model, tmp_path)
    asking = run_of(stdlib_model, stdlib_model, tmp_path / "answers")
    asking.teacher, asking.windows = stdlib_model, run.windows
    keep_answers(asking, 8, temperature)
    run.answers = asking.out
    technique.apply(run)
    noted: Any = run.results["training"]
    assert abs(noted["start"]["kl"]) < 1e-4
    assert noted["start"]["agreement"] == 1


def test_hidden_states_of_a_text_weigh_as_one_row_however_long_it_is(tiny_classifier: MakeClassifier) -> None:
    """As its divergence does, so that a weight means the same for all texts."""
    student, teacher = (tiny_classifier("Bert", seed) for seed in (5, 6))
    trainee = Trainee(
        Student(student), LOSSES.validate_python(STATES), LiveTeacher(teacher, CPU, keeps_layers=True), seed=0
    )
    trainee.eval()
    lengths = (3, 8)
    flags_BT = torch.tensor([[0 if place < length else PADDING for place in range(8)] for length in lengths])
    batch = Batch(_tokens(2, 8, 32), flags_BT.to(torch.uint8), torch.tensor([0, 2]))
    states = []
    for model in (trainee.model, LiveTeacher(teacher, CPU).model):
        with torch.no_grad(), kept_outputs(model.base_model.encoder.layer) as layers:
            model(**inputs_of(batch))
        states.append(torch.stack(layers))
    own, target = states
    errors_LBT = (own - target).square().mean(-1) / target.square().mean(-1)
    expected = sum(errors_LBT[:, row, :length].mean() for row, length in enumerate(lengths))
    torch.testing.assert_close(trainee(batch, [0, 1], 1.0), expected)
