"""Encoder classifiers: a head that is made and trained, and a student of half the depth that keeps what it learned.

The texts are pieces of the standard library's own sources, the labels the packages that they come from.
"""

import json
from pathlib import Path

import pytest
import torch
import transformers
from fixtures.exporting import run_of
from fixtures.package_texts import PACKAGES, SETTINGS, SIZES, accuracy_of, trained_on
from fixtures.training import Killed, prepared, validations
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from optcore.architecture import task_of
from optcore.errors import DataError, RecipeError
from optcore.events import AnyEvent, Metric
from optcore.measures import check_measures
from optcore.plan import check
from optcore.recipe import recipe_from
from optcore.techniques import Distill, Finetune
from optcore.training.windows import Windows


@pytest.fixture(scope="module")
def teacher(package_encoder: Path, package_texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    data = {"kind": "labelled", "path": str(package_texts[0])}
    technique = Finetune.model_validate({**SETTINGS, "steps": 240, "data": data})
    run = trained_on(technique, package_encoder, package_encoder, folder, package_texts[0])
    assert validations(run, "accuracy")[-1] > 2 * validations(run, "accuracy")[0]
    return folder / "out"


@pytest.mark.proof
@pytest.mark.slow
def test_a_head_is_made_for_the_labels_of_the_data(teacher: Path, package_encoder: Path) -> None:
    assert task_of(package_encoder) == "fill-mask"
    assert task_of(teacher) == "text-classification"
    config = json.loads((teacher / "config.json").read_text())
    assert list(config["id2label"].values()) == list(PACKAGES)
    model = AutoModelForSequenceClassification.from_pretrained(teacher)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    text = "async def wait(self, loop, future):\n    await asyncio.sleep(0, loop)\nself._loop.call_soon(callback)"
    with torch.no_grad():
        label = int(model(**tokenizer(text, return_tensors="pt")).logits.argmax())
    assert PACKAGES[label] == "asyncio"


@pytest.mark.proof
@pytest.mark.slow
def test_a_student_of_half_the_depth_keeps_theaccuracy_of(
    teacher: Path, package_texts: tuple[Path, Path], tmp_path: Path
) -> None:
    torch.manual_seed(2)
    student = tmp_path / "student"
    sizes = {"vocab_size": SIZES["vocab_size"], "dim": 96, "n_heads": 4, "hidden_dim": 192, "n_layers": 2}
    config = transformers.DistilBertConfig(**sizes, max_position_embeddings=64)
    transformers.DistilBertForMaskedLM(config).save_pretrained(student)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(student)
    losses = [
        {"kind": "forward_kl", "temperature": 2.0},
        {"kind": "cross_entropy", "weight": 0.5},
        {"kind": "hidden_mse", "weight": 30, "progressive": True},
    ]
    data = {"kind": "labelled", "path": str(package_texts[0])}
    technique = Distill.model_validate({**SETTINGS, "steps": 240, "losses": losses, "data": data})
    run = trained_on(technique, teacher, student, tmp_path, package_texts[0])
    of_teacher = accuracy_of(teacher, teacher, package_texts[1], tmp_path / "a")
    of_student = accuracy_of(teacher, run.out, package_texts[1], tmp_path / "b")
    print(f"accuracy on held-out pieces: teacher {of_teacher:.1%}, student of half the depth {of_student:.1%}")
    print(f"kept {of_student / of_teacher:.1%}")
    assert of_teacher > 3 / len(PACKAGES)
    assert of_student >= 0.95 * of_teacher
    assert len(list((run.out).glob("*.safetensors"))) == 1


def test_windows_of_labelled_texts(package_encoder: Path, package_texts: tuple[Path, Path], tmp_path: Path) -> None:
    technique = Finetune.model_validate(
        {**SETTINGS, "steps": 2, "data": {"kind": "labelled", "path": str(package_texts[0])}}
    )
    run = run_of(package_encoder, package_encoder, tmp_path / "out")
    facts = prepared(run, technique, tmp_path / "windows", (package_texts[0],))
    batch = Windows(tmp_path / "windows").read([0, 1, 2])
    assert facts.learned == facts.windows == 2 * 32 + 64
    assert batch.labels_B is not None
    assert int(batch.labels_B.max()) < len(PACKAGES)
    tokenizer = AutoTokenizer.from_pretrained(package_encoder)
    first = batch.tokens_BT[0][batch.attended_BT[0].bool()]
    assert first[0] == tokenizer.cls_token_id
    assert first[-1] == tokenizer.sep_token_id
    assert set(batch.tokens_BT[0][len(first) :].tolist()) <= {tokenizer.pad_token_id}


def test_a_killed_run_drops_the_same_activations_when_it_goes_on(
    package_encoder: Path, package_texts: tuple[Path, Path], tmp_path: Path
) -> None:
    data = {"kind": "labelled", "path": str(package_texts[0])}
    technique = Finetune.model_validate({**SETTINGS, "steps": 6, "save_every": 2, "data": data})

    def train(name: str, kill_at: int = 0) -> dict[int, float]:
        losses: dict[int, float] = {}

        def emit(event: AnyEvent) -> None:
            if isinstance(event, Metric) and event.name == "loss":
                losses[int(event.step or 0)] = event.value
                if event.step == kill_at:
                    raise Killed

        run = run_of(package_encoder, package_encoder, tmp_path / name / "out")
        run.text_files, run.emit = (package_texts[0],), emit
        prepared(run, technique, tmp_path / name / "windows", (package_texts[0],))
        if kill_at:
            with pytest.raises(Killed):
                technique.apply(run)
            kill_at = 0
        technique.apply(run)
        return losses

    whole = train("whole")
    assert train("killed", kill_at=3) == whole
    assert len(set(whole.values())) == 6


@pytest.mark.proof
@pytest.mark.slow
def test_a_label_that_a_classifier_does_not_know(teacher: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text("".join(json.dumps({"text": "import this", "label": "zen"}) + "\n" for _ in range(40)))
    technique = Finetune.model_validate({**SETTINGS, "steps": 1, "data": {"kind": "labelled", "path": str(file)}})
    run = run_of(teacher, teacher, tmp_path / "out")
    with pytest.raises(DataError, match="the label 'zen', which the model does not know"):
        prepared(run, technique, tmp_path / "windows", (file,))


@pytest.mark.parametrize(
    ("measured", "trained", "is_refused"),
    [({}, {}, True), ({"path": "a.csv"}, {"path": "a.csv"}, True), ({"path": "b.csv"}, {"path": "a.csv"}, False)],
)
def test_accuracy_is_not_measured_on_what_was_trained_on(
    measured: dict[str, str], trained: dict[str, str], is_refused: bool
) -> None:
    document = {
        "model": {"id": "google-bert/bert-base-uncased"},
        "calibration": {"path": "c.csv"},
        "chain": [{"technique": "finetune", "data": {"kind": "labelled", **trained}}],
        "target": {"format": "dense"},
        "evaluate": [{"evaluator": "classification", **measured}],
    }
    if is_refused:
        with pytest.raises(RecipeError, match="on the texts that the chain trains on"):
            check_measures(recipe_from(document))
    else:
        check_measures(recipe_from(document))
        check(recipe_from(document))
