"""Encoder classifiers: a head that is made and trained, and a student of half the depth that keeps what it learned.

The texts are pieces of the standard library's own sources, the labels the packages that they come from.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fixtures.exporting import run_of
from fixtures.training import Killed, prepared, validations
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from optcore.architecture import task_of
from optcore.calibration.stdlib import documents
from optcore.errors import DataError, RecipeError
from optcore.evaluate import Classification
from optcore.evaluate.classification_stream import classify
from optcore.events import AnyEvent, Metric
from optcore.measures import check_measures
from optcore.plan import check
from optcore.recipe import recipe_from
from optcore.techniques import Distill, Finetune
from optcore.training.windows import Windows

PACKAGES = ("asyncio", "http", "importlib", "logging", "multiprocessing", "re", "urllib")
LINES = 6
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SIZES = {"vocab_size": 1000, "hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 192}
SETTINGS: dict[str, Any] = {
    "batch": 32,
    "micro_batch": 32,
    "sequence_length": 64,
    "learning_rate": 1e-3,
    "warmup": 0.1,
    "validation": {"samples": 64},
    "gradient_checkpointing": False,
}


def _pieces() -> list[tuple[str, str]]:
    """Of each package equally many, so that no label can be guessed."""
    found: dict[str, list[tuple[str, str]]] = {package: [] for package in PACKAGES}
    for document in documents("train"):
        package = document.name.split("/")[0]
        if package in PACKAGES:
            lines = [line.strip() for line in document.text.splitlines() if len(line.strip()) > 8]
            starts = range(0, len(lines) - LINES, LINES)
            found[package] += [("\n".join(lines[start : start + LINES]), package) for start in starts]
    least = min(map(len, found.values()))
    return [
        piece for together in zip(*(pieces[:least] for pieces in found.values()), strict=True) for piece in together
    ]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files to train on and to measure on: every fifth piece is held out."""
    folder, pieces = tmp_path_factory.mktemp("texts"), _pieces()
    files = folder / "train.jsonl", folder / "test.jsonl"
    for number, file in enumerate(files):
        rows = [row for place, row in enumerate(pieces) if (place % 5 == 4) == bool(number)]
        file.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return files


@pytest.fixture(scope="module")
def encoder(texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of four layers that has learned nothing, with a tokenizer made of the texts, and no head for labels."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(1)
    config = transformers.BertConfig(**SIZES, num_hidden_layers=4, max_position_embeddings=64)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    _tokenizer([text for text, _ in _pieces()]).save_pretrained(folder)
    return folder


def _tokenizer(pieces: list[str]) -> Any:
    """Characters, and the words that are met most: the library's own training does not come out alike twice."""
    before = BertPreTokenizer()
    words = Counter(word for piece in pieces for word, _ in before.pre_tokenize_str(piece))
    characters = sorted({character for word in words for character in word})
    common = sorted((word for word in words if len(word) > 1), key=lambda word: (-words[word], word))
    known = [*SPECIAL, *characters, *(f"##{character}" for character in characters), *common][: SIZES["vocab_size"]]
    tokenizer = Tokenizer(WordPiece({text: number for number, text in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = before
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _trained(technique: Any, source: Path, checkpoint: Path, folder: Path, file: Path) -> Any:
    torch.set_num_threads(1)
    run = run_of(source, checkpoint, folder / "out")
    run.teacher, run.text_files = source, (file,)
    prepared(run, technique, folder / "windows", (file,))
    technique.apply(run)
    return run


def _accuracy(source: Path, folder: Path, file: Path, scratch: Path) -> float:
    evaluator = Classification(path=str(file), samples=400, sequence_length=64)
    return classify(run_of(source, folder, scratch), evaluator)["result"][0].accuracy


@pytest.fixture(scope="module")
def teacher(encoder: Path, texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    data = {"kind": "labelled", "path": str(texts[0])}
    technique = Finetune.model_validate({**SETTINGS, "steps": 240, "data": data})
    run = _trained(technique, encoder, encoder, folder, texts[0])
    assert validations(run, "accuracy")[-1] > 2 * validations(run, "accuracy")[0]
    return folder / "out"


@pytest.mark.proof
@pytest.mark.slow
def test_a_head_is_made_for_the_labels_of_the_data(teacher: Path, encoder: Path) -> None:
    assert task_of(encoder) == "fill-mask"
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
def test_a_student_of_half_the_depth_keeps_the_accuracy(
    teacher: Path, texts: tuple[Path, Path], tmp_path: Path
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
    data = {"kind": "labelled", "path": str(texts[0])}
    technique = Distill.model_validate({**SETTINGS, "steps": 240, "losses": losses, "data": data})
    run = _trained(technique, teacher, student, tmp_path, texts[0])
    of_teacher = _accuracy(teacher, teacher, texts[1], tmp_path / "a")
    of_student = _accuracy(teacher, run.out, texts[1], tmp_path / "b")
    print(f"accuracy on held-out pieces: teacher {of_teacher:.1%}, student of half the depth {of_student:.1%}")
    print(f"kept {of_student / of_teacher:.1%}")
    assert of_teacher > 3 / len(PACKAGES)
    assert of_student >= 0.95 * of_teacher
    assert len(list((run.out).glob("*.safetensors"))) == 1


def test_windows_of_labelled_texts(encoder: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    technique = Finetune.model_validate({**SETTINGS, "steps": 2, "data": {"kind": "labelled", "path": str(texts[0])}})
    run = run_of(encoder, encoder, tmp_path / "out")
    facts = prepared(run, technique, tmp_path / "windows", (texts[0],))
    batch = Windows(tmp_path / "windows").read([0, 1, 2])
    assert facts.learned == facts.windows == 2 * 32 + 64
    assert batch.labels_B is not None
    assert int(batch.labels_B.max()) < len(PACKAGES)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    first = batch.tokens_BT[0][batch.attended_BT[0].bool()]
    assert first[0] == tokenizer.cls_token_id
    assert first[-1] == tokenizer.sep_token_id
    assert set(batch.tokens_BT[0][len(first) :].tolist()) <= {tokenizer.pad_token_id}


def test_a_killed_run_drops_the_same_activations_when_it_goes_on(
    encoder: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    data = {"kind": "labelled", "path": str(texts[0])}
    technique = Finetune.model_validate({**SETTINGS, "steps": 6, "save_every": 2, "data": data})

    def train(name: str, kill_at: int = 0) -> dict[int, float]:
        losses: dict[int, float] = {}

        def emit(event: AnyEvent) -> None:
            if isinstance(event, Metric) and event.name == "loss":
                losses[int(event.step or 0)] = event.value
                if event.step == kill_at:
                    raise Killed

        run = run_of(encoder, encoder, tmp_path / name / "out")
        run.text_files, run.emit = (texts[0],), emit
        prepared(run, technique, tmp_path / name / "windows", (texts[0],))
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
