"""Whose numbers labels have in training, and heads that are made for them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.classifiers import NAMES, MakeClassifier
from fixtures.exporting import run_of
from fixtures.training import STDLIB, prepared
from fixtures.whole_runs import walk
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertForSequenceClassification

from optcore.errors import DataError, RecipeError
from optcore.events import RunFinished
from optcore.techniques import Distill, Finetune, Heal
from optcore.training.windows import Windows

TEXTS = ("good film", "bad food", "so fine", "the poor")
SETTINGS: dict[str, Any] = {
    "steps": 2,
    "batch": 4,
    "micro_batch": 4,
    "sequence_length": 8,
    "learning_rate": 0.01,
    "warmup": 0,
    "validation": {"samples": 4},
    "gradient_checkpointing": False,
}
SMALL_LORA = {"rank": 2, "alpha": 4}


def rows(path: Path, labels: tuple[object, ...], column: str = "text", count: int = 16) -> Path:
    """Each label has a text of its own."""
    found = [{column: TEXTS[n % len(labels)], "label": labels[n % len(labels)]} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def headless(model: Path, folder: Path) -> Path:
    torch.manual_seed(3)
    BertForMaskedLM(BertConfig.from_pretrained(model)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def named(model: Path, folder: Path, names: tuple[str, ...], seed: int = 4) -> Path:
    """A classifier with the names in this order."""
    torch.manual_seed(seed)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    config = BertConfig.from_pretrained(model, num_labels=len(names), **labels)
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def numbers(folder: Path, tokenizer: Any) -> dict[str, int]:
    """The number that each text of the windows has."""
    windows = Windows(folder)
    batch = windows.read(range(windows.facts.windows))
    assert batch.labels_B is not None
    texts = tokenizer.batch_decode(batch.tokens_BT, skip_special_tokens=True)
    return dict(zip(texts, batch.labels_B.tolist(), strict=True))


def prepare(
    folder: Path, source: Path, checkpoint: Path, file: Path, teacher: Path | None = None, **data: Any
) -> dict[str, int]:
    technique = Finetune.model_validate({**SETTINGS, "data": {"kind": "labelled", "path": str(file), **data}})
    run = run_of(source, checkpoint, folder / "out")
    run.teacher = teacher
    prepared(run, technique, folder / "windows", (file,))
    return numbers(folder / "windows", AutoTokenizer.from_pretrained(source))


def test_labels_are_numbered_as_what_trains_does(tiny_classifier: MakeClassifier, tmp_path: Path) -> None:
    """Another student counts in its own order, and a head that the chain made keeps its numbers where the next data
    lacks a label."""
    source = tiny_classifier("Bert")
    student, bare = named(source, tmp_path / "student", NAMES[::-1]), headless(source, tmp_path / "bare")
    file = rows(tmp_path / "all.jsonl", NAMES)
    few = rows(tmp_path / "few.jsonl", NAMES[1:])
    assert prepare(tmp_path / "a", source, student, file) == {TEXTS[0]: 2, TEXTS[1]: 1, TEXTS[2]: 0}
    assert prepare(tmp_path / "b", bare, student, few) == {TEXTS[0]: 1, TEXTS[1]: 0}
    assert prepare(tmp_path / "c", bare, bare, few) == {TEXTS[0]: 0, TEXTS[1]: 1}
    assert prepare(tmp_path / "d", bare, bare, few, teacher=student) == {TEXTS[0]: 1, TEXTS[1]: 0}


def test_a_head_takes_over_its_teachers_labels(tiny_classifier: MakeClassifier, tmp_path: Path) -> None:
    source = tiny_classifier("Bert")
    bare, teacher = headless(source, tmp_path / "bare"), named(source, tmp_path / "teacher", NAMES[::-1])
    file = rows(tmp_path / "few.jsonl", NAMES[:2])
    data = {"kind": "labelled", "path": str(file)}
    technique = Distill.model_validate({**SETTINGS, "teacher": {"path": str(teacher)}, "data": data})
    run = run_of(bare, bare, tmp_path / "out")
    run.teacher, run.text_files = teacher, (file,)
    prepared(run, technique, tmp_path / "windows", (file,))
    technique.apply(run)
    assert list(json.loads((run.out / "config.json").read_text())["id2label"].values()) == list(NAMES[::-1])


def test_a_teacher_with_other_numbers_is_refused(tiny_classifier: MakeClassifier, tmp_path: Path) -> None:
    source = tiny_classifier("Bert")
    teacher = named(source, tmp_path / "teacher", NAMES[::-1])
    file = rows(tmp_path / "all.jsonl", NAMES)
    data = {"kind": "labelled", "path": str(file)}
    technique = Distill.model_validate({**SETTINGS, "teacher": {"path": str(teacher)}, "data": data})
    run = run_of(source, source, tmp_path / "out")
    run.teacher, run.text_files = teacher, (file,)
    prepared(run, technique, tmp_path / "windows", (file,))
    with pytest.raises(RecipeError, match=r"0 \(positive\), 1 \(neutral\), 2 \(negative\), and the student's 0 \(neg"):
        technique.apply(run)


@pytest.mark.parametrize(
    "settings",
    [
        {"technique": "finetune", "scope": "lora", "lora": SMALL_LORA},
        {"technique": "heal", "lora": SMALL_LORA},
        {"technique": "heal", "adapters": False},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_a_head_that_was_made_trains_in_every_scope(
    settings: dict[str, Any], tiny_classifier: MakeClassifier, tmp_path: Path
) -> None:
    if "adapters" not in settings:
        pytest.importorskip("peft")
    source = tiny_classifier("Bert")
    bare, teacher = headless(source, tmp_path / "bare"), named(source, tmp_path / "teacher", NAMES)
    file = rows(tmp_path / "all.jsonl", NAMES)
    kind = Finetune if settings["technique"] == "finetune" else Heal
    towards = {} if kind is Finetune else {"teacher": {"path": str(teacher)}}
    data = {"kind": "labelled", "path": str(file)}
    technique = kind.model_validate({**SETTINGS, **settings, **towards, "data": data})
    run = run_of(bare, bare, tmp_path / "out")
    run.teacher, run.text_files = (teacher if towards else None), (file,)
    prepared(run, technique, tmp_path / "windows", (file,))
    technique.apply(run)
    assert run.results["training"]["best_step"] > 0  # type: ignore[index]
    drawn, body = load_file(run.scratch / "classifier" / "model.safetensors"), load_file(bare / "model.safetensors")
    left = load_file(run.out / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias", "bert.pooler.dense.weight"):
        assert not torch.equal(left[name], drawn[name]), name
    for name in ("bert.embeddings.word_embeddings.weight",):
        assert torch.equal(left[name], body[name])


@pytest.mark.parametrize("labels", [(1, 2, 3, 4), (5, 10), ("1", "2", "3")], ids=str)
def test_a_head_for_labels_that_are_numbers(
    labels: tuple[object, ...], tiny_classifier: MakeClassifier, tmp_path: Path
) -> None:
    bare = headless(tiny_classifier("Bert"), tmp_path / "bare")
    found = prepare(tmp_path / "a", bare, bare, rows(tmp_path / "a.jsonl", labels))
    assert found == {text: number for number, text in enumerate(TEXTS[: len(labels)])}


def test_what_is_wrong_with_labels_is_said_of_the_chain(tiny_classifier: MakeClassifier, tmp_path: Path) -> None:
    source = tiny_classifier("Bert")
    with pytest.raises(DataError, match="the label 'zen'") as caught:
        prepare(tmp_path / "a", source, source, rows(tmp_path / "a.jsonl", ("zen", "positive")))
    assert caught.value.field == "/chain"
    with pytest.raises(DataError, match="no column 'stars'") as caught:
        prepare(tmp_path / "b", source, source, rows(tmp_path / "b.jsonl", NAMES), label="stars")
    assert caught.value.field == "/chain"


def test_the_recipes_own_data_keeps_its_column(tiny_classifier: MakeClassifier, tmp_path: Path) -> None:
    """Two columns of text, of which `calibration.column` names one."""
    source, file = tiny_classifier("Bert"), tmp_path / "two.jsonl"
    found = [{"text": TEXTS[3], "review": TEXTS[n % 3], "label": NAMES[n % 3]} for n in range(16)]
    file.write_text("".join(json.dumps(row) + "\n" for row in found))
    calibration = STDLIB.model_copy(update={"dataset": "", "path": str(file), "column": "review"})
    technique = Finetune.model_validate({**SETTINGS, "data": {"kind": "labelled"}})
    prepared(run_of(source, source, tmp_path / "out"), technique, tmp_path / "windows", (file,), calibration)
    assert set(numbers(tmp_path / "windows", AutoTokenizer.from_pretrained(source))) == set(TEXTS[:3])


@pytest.mark.timeout(300)
def test_a_chain_counts_as_its_student_does(tiny_classifier: MakeClassifier, tmp_path: Path) -> None:
    """The whole engine: the source has other labels than the student that goes on, and the last data lacks one."""
    source, names = tiny_classifier("Bert"), ("c", "b", "a")
    student, teacher = (named(source, tmp_path / f"{seed}", names, seed) for seed in (8, 9))
    files = {name: rows(tmp_path / f"{name}.jsonl", names[::-1][:count]) for name, count in (("all", 3), ("few", 2))}
    (tmp_path / "measured.jsonl").write_text(files["all"].read_text().replace('"text": "', '"text": "so '))

    def data(name: str) -> dict[str, Any]:
        return {"data": {"kind": "labelled", "path": str(files[name])}}

    settings = {**SETTINGS, "steps": 1}
    beside = {"student": {"path": str(student)}, "teacher": {"path": str(teacher)}}
    document = {
        "model": {"path": str(source)},
        "calibration": {"path": str(files["all"]), "samples": 2, "sequence_length": 8},
        "chain": [
            {"technique": "distill", **settings, **beside, **data("all")},
            {"technique": "finetune", **settings, **data("few")},
        ],
        "target": {"format": "dense"},
        "evaluate": [{"evaluator": "classification", "path": str(tmp_path / "measured.jsonl")}],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(document))
    last = walk(tmp_path / "recipe.yaml", tmp_path / "result", tmp_path / "work")[-1]
    assert isinstance(last, RunFinished), last
    tokenizer = AutoTokenizer.from_pretrained(source)
    made = [numbers(path.parent, tokenizer) for path in (tmp_path / "work").rglob("windows.json")]
    expected = {TEXTS[0]: 2, TEXTS[1]: 1, TEXTS[2]: 0}  # a, b and c
    assert sorted(made, key=len) == [{TEXTS[0]: 2, TEXTS[1]: 1}, expected]
