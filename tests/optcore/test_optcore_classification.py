"""Encoder classifiers: their logits, and what is measured on labelled texts, against transformers' own."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.classifiers import CLASSIFIERS, NAMES, MakeClassifier, sentences, write_sentences
from fixtures.exporting import plain, run_of, streamed_logits
from fixtures.tiny_models import MakeModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from optcore.architecture import task_of
from optcore.calibration.gradients import BackwardPass
from optcore.errors import BadCheckpoint, DataError, RecipeError
from optcore.evaluate import Classification
from optcore.evaluate.classification_stream import Confusion, classify
from optcore.evaluate.examples import check_examples, draw, label_number
from optcore.plan import check
from optcore.recipe import recipe_from
from optcore.references import Calibration
from optcore.sources.texts import Labelled, read_labelled
from optcore.streaming.decoder import Decoder

COUNT = 60


def predictions(folder: Path, texts: list[str]) -> torch.Tensor:
    """Labels [S] by the whole model, the sentences padded with an attention mask."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        given = tokenizer(texts, padding=True, return_tensors="pt")
        return model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits.argmax(-1)


def f1_of(label: int, true: list[int], given: list[int]) -> float:
    hits = sum(a == b == label for a, b in zip(true, given, strict=True))
    return 2 * hits / (true.count(label) + given.count(label))


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_logits_equal_transformers(family: str, tiny_classifier: MakeClassifier) -> None:
    folder = tiny_classifier(family)
    tokens_BT = torch.randint(5, 19, (3, 12), generator=torch.Generator().manual_seed(1))
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected_BL = model(tokens_BT).logits
    decoder = Decoder(folder)
    torch.testing.assert_close(streamed_logits(decoder, tokens_BT), expected_BL, rtol=1e-5, atol=1e-5)
    assert expected_BL.shape == (3, len(NAMES))
    assert decoder.is_classifier
    assert not decoder.is_causal


def test_a_model_says_its_task(tiny_classifier: MakeClassifier, tiny_model: MakeModel) -> None:
    tasks = [task_of(folder) for folder in (tiny_classifier("Bert"), tiny_model("Bert"), tiny_model("Llama"))]
    assert tasks == ["text-classification", "fill-mask", "text-generation"]
    assert not Decoder(tiny_model("Bert")).is_classifier


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_figures_are_those_of_padded_batches(family: str, tiny_classifier: MakeClassifier, tmp_path: Path) -> None:
    source, result = tiny_classifier(family), tiny_classifier(family, 6)
    evaluator = Classification(path=str(write_sentences(tmp_path / "labelled.jsonl", COUNT)))
    rows = {row.name: row for row in evaluator.measure(run_of(source, result, tmp_path / "out"))}
    texts, true = ([row[column] for row in sentences(COUNT)] for column in (0, 1))
    before, after = (predictions(folder, texts).tolist() for folder in (source, result))
    assert len(set(after)) > 1
    for column, given in (("source", before), ("result", after)):
        accuracy = sum(a == b for a, b in zip(true, given, strict=True)) / COUNT
        assert getattr(rows["accuracy"], column) == pytest.approx(accuracy)
        macro_f1 = sum(f1_of(label, true, given) for label in range(3)) / 3
        assert getattr(rows["macro_f1"], column) == pytest.approx(macro_f1)
    agreement = sum(a == b for a, b in zip(before, after, strict=True)) / COUNT
    assert (rows["agreement"].source, rows["agreement"].result) == (None, pytest.approx(agreement))
    assert rows["accuracy"].note == f"over {COUNT} labelled texts"


def test_a_quantized_classifier_is_near_its_source(tiny_classifier: MakeClassifier, tmp_path: Path) -> None:
    source, quantized = tiny_classifier("Bert"), tmp_path / "quantized"
    text = write_sentences(tmp_path / "labelled.jsonl", COUNT)
    calibration = Calibration(path=str(text), samples=4, sequence_length=16)
    run = run_of(source, source, quantized, calibration=calibration)
    run.data_files = (text,)
    plain("int8", scale_search="mse").apply(run)
    measuring = run_of(source, quantized, tmp_path / "out", calibration=calibration)
    measuring.data_files = (text,)
    found = classify(measuring, Classification())  # on the calibration files
    assert found.keys() == {"source", "result", "baseline"}
    assert 0.9 < found["result"][1].accuracy <= 1
    assert found["source"][1].accuracy == 1
    layers = [name for name, _ in measuring.results["layer_errors"]]  # type: ignore[attr-defined]
    assert layers == ["bert.encoder.layer.0", "bert.encoder.layer.1"]


def test_gradients_of_a_classifier_are_of_whole_texts(tiny_classifier: MakeClassifier, tmp_path: Path) -> None:
    """The head reads the first token alone: a part of the text without it has no gradient."""
    decoder = Decoder(tiny_classifier("Bert"))
    tokens_ST = torch.randint(5, 19, (300, 4), generator=torch.Generator().manual_seed(1))
    last_STH = BackwardPass(decoder, tokens_ST, tmp_path, seed=0)._slots_LSTH[-1]
    assert (last_STH[:, 0].abs().sum(-1) > 0).all()
    assert not last_STH[:, 1:].any()


def test_labels_of_another_number_are_refused(tiny_classifier: MakeClassifier, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    source, other = tiny_classifier("Bert"), tmp_path / "model"
    BertForSequenceClassification(BertConfig.from_pretrained(source, num_labels=2)).save_pretrained(other)
    labelled = Classification(path=str(write_sentences(tmp_path / "labelled.jsonl")))
    with pytest.raises(BadCheckpoint, match="the result knows 2 labels and the source 3"):
        classify(run_of(source, other, tmp_path / "out"), labelled)


def relabelled(folder: Path, target: Path, names: tuple[str, ...], order: list[int]) -> Path:
    """The same classifier with its labels in another order, and with other names; logits are higher by 1."""
    shutil.copytree(folder, target)
    config = json.loads((folder / "config.json").read_text())
    named = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    (target / "config.json").write_text(json.dumps({**config, **named}))
    tensors = load_file(folder / "model.safetensors")
    head = {name: tensor[order] for name, tensor in tensors.items() if name.startswith("classifier.")}
    head["classifier.bias"] += 1  # another file, so that it is read as a model of its own
    save_file({**tensors, **head}, target / "model.safetensors", {"format": "pt"})
    return target


def test_a_source_agrees_by_name(tiny_classifier: MakeClassifier, tmp_path: Path) -> None:
    """A student may have the same labels in another order; where names differ, numbers are all there is."""
    source = tiny_classifier("Bert")
    evaluator = Classification(path=str(write_sentences(tmp_path / "labelled.jsonl", COUNT, named=True)))
    reversed_ = relabelled(source, tmp_path / "reversed", NAMES[::-1], [2, 1, 0])
    found = classify(run_of(source, reversed_, tmp_path / "a"), evaluator)
    straight = classify(run_of(source, source, tmp_path / "b"), evaluator)["source"][0]
    assert found["result"][1].accuracy == 1
    assert found["source"][0].accuracy == found["result"][0].accuracy == straight.accuracy
    other = relabelled(source, tmp_path / "other", ("LABEL_0", "LABEL_1", "LABEL_2"), [0, 1, 2])
    numbered = Classification(path=str(write_sentences(tmp_path / "numbered.jsonl", COUNT)))
    assert classify(run_of(source, other, tmp_path / "c"), numbered)["result"][1].accuracy == 1


def test_nothing_agrees_with_a_source_that_labels_no_texts(tiny_classifier: MakeClassifier, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    result, source = tiny_classifier("Bert"), tmp_path / "source"
    BertForMaskedLM(BertConfig.from_pretrained(result)).save_pretrained(source)
    AutoTokenizer.from_pretrained(result).save_pretrained(source)
    evaluator = Classification(path=str(write_sentences(tmp_path / "labelled.jsonl", COUNT)))
    assert evaluator.measure_gate(run_of(source, result, tmp_path / "out")).keys() == {"accuracy"}
    assert evaluator.measure_gate(run_of(result, result, tmp_path / "out")).keys() == {"accuracy", "agreement"}


def test_macro_f1_leaves_out_labels_that_never_occur() -> None:
    confusion = Confusion(4)
    confusion.add(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 3]))
    assert confusion.accuracy == 0.5
    assert confusion.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def _csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("write", [_csv, _jsonl, _parquet], ids=lambda write: write.__name__)
def test_labelled_rows_of_every_form(write: Callable[[Path, list[dict[str, Any]]], None], tmp_path: Path) -> None:
    path = tmp_path / f"data.{write.__name__[1:]}"
    write(path, [{"text": "good", "stars": 2}, {"text": " ", "stars": 1}, {"text": "bad", "stars": 0}])
    found = list(read_labelled([path], None, "stars"))
    assert [(row.text, int(row.label)) for row in found] == [("good", 2), ("bad", 0)]
    with pytest.raises(DataError, match="no column 'label' of labels") as caught:
        list(read_labelled([path], None, "label"))
    assert (caught.value.field, caught.value.remedy) == ("/evaluate", "columns: text, stars")


def test_a_text_file_has_no_labels(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("good")
    with pytest.raises(DataError, match=r"data\.txt has no columns"):
        list(read_labelled([tmp_path / "data.txt"], None, "label"))


@pytest.mark.parametrize("label", [3, "unheard of", "-1"])
def test_an_unknown_label_names_the_known_ones(
    label: int | str, tiny_classifier: MakeClassifier, tmp_path: Path
) -> None:
    _jsonl(tmp_path / "data.jsonl", [{"text": "good", "label": label}])
    evaluator = Classification(path=str(tmp_path / "data.jsonl"))
    with pytest.raises(DataError, match="which the model does not know") as caught:
        check_examples(tiny_classifier("Bert"), evaluator, Calibration(), ())
    assert caught.value.remedy.endswith("0 (negative), 1 (neutral), 2 (positive)")


@pytest.mark.parametrize("change", [{"num_labels": 1}, {"problem_type": "multi_label_classification"}], ids=str)
def test_a_model_that_chooses_no_label_has_no_accuracy(change: dict[str, Any], tmp_path: Path) -> None:
    from transformers import BertConfig

    BertConfig(**change).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="does not choose one of several labels"):
        check_examples(tmp_path, Classification(path=str(tmp_path)), Calibration(), ())


def test_names_may_be_digits() -> None:
    """Where a name is another number, no number stands for itself: 1 would be two labels."""
    stars, odd = {0: "1", 1: "2", 2: "3"}, {0: "0", 1: "1", 2: "3"}
    assert [label_number(label, stars) for label in (1, "1", 2, "3")] == [0, 0, 1, 2]
    assert [label_number(label, odd) for label in (0, "1", 3)] == [0, 1, 2]
    assert [label_number(label, {0: "0", 1: "1"}) for label in (0, "1")] == [0, 1]
    assert [label_number(label, {0: "no", 1: "yes"}) for label in (0, "1", "yes")] == [0, 1, 1]
    for label, names in ((0, stars), ("0", stars), (2, odd)):
        with pytest.raises(DataError, match="which the model does not know"):
            label_number(label, names)


def test_names_and_numbers_are_one_label(tiny_classifier: MakeClassifier, tmp_path: Path) -> None:
    source = tiny_classifier("Bert")
    found = [
        classify(run_of(source, source, tmp_path / "out"), Classification(path=str(path)))["source"][0].counts_LL
        for path in (write_sentences(tmp_path / f"{named}.jsonl", COUNT, named) for named in (False, True))
    ]
    assert torch.equal(*found)


def test_the_draw_is_the_seeds_and_holds_no_more_than_it_gives() -> None:
    rows = [Labelled(f"text {number}", number // 500) for number in range(1000)]
    first = draw(iter(rows), 100, seed=0)
    assert first == draw(iter(rows), 100, seed=0)
    assert first != draw(iter(rows), 100, seed=1)
    assert 30 < sum(int(row.label) for row in first) < 70


def test_built_in_text_has_no_labels() -> None:
    document = {"model": {"path": "m"}, "chain": [{"technique": "ptq", "scheme": "int8"}]}
    labelled = {**document, "evaluate": [{"evaluator": "classification"}], "calibration": {"dataset": "python-stdlib"}}
    with pytest.raises(RecipeError, match="has no labels") as caught:
        check(recipe_from(labelled))
    assert caught.value.field == "/evaluate/0/path"
    check(recipe_from({**labelled, "calibration": {"path": "data.csv"}}))
