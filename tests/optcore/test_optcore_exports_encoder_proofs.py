"""A classifier from pruned heads to an 8-bit ONNX graph, measured in ONNX Runtime on the CPU; it prints its figures.

A BERT of four layers learns to tell packages of the standard library by their sources. What `encoder-onnx.yaml` asks
for is done to it by the engine; accuracy is that of the exported file itself on held-out pieces.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import quantiles
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
import yaml
from fixtures.classifiers import write_sentences
from fixtures.engine_runs import run_here
from fixtures.exporting import plain, run_of
from fixtures.package_texts import PACKAGES, SETTINGS, SIZES, trained_on
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from optcore.export.onnx import Onnx
from optcore.references import Calibration
from optcore.sparsity import load_sparsity
from optcore.techniques import Finetune

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]

RECIPE = Path(__file__).parents[2] / "docs" / "recipes" / "encoder-onnx.yaml"
WIDE = {**SIZES, "hidden_size": 256, "intermediate_size": 1024}
REPEATS = 40
Call = Callable[[Mapping[str, torch.Tensor]], Any]


class Times(NamedTuple):
    """Milliseconds of the processor for one call, on one thread: its latency where nothing else wants that core."""

    lower: float
    median: float
    upper: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ms (quartiles {self.lower:.2f} to {self.upper:.2f})"


@pytest.fixture(scope="module")
def classifier(
    package_encoder: Path, package_texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    torch.manual_seed(1)
    config = transformers.BertConfig(**WIDE, num_hidden_layers=4, max_position_embeddings=64)
    transformers.BertForMaskedLM(config).save_pretrained(folder / "begun")
    AutoTokenizer.from_pretrained(package_encoder).save_pretrained(folder / "begun")
    data = {"kind": "labelled", "path": str(package_texts[0])}
    settings = {**SETTINGS, "steps": 600, "batch": 16, "micro_batch": 16, "learning_rate": 5e-4, "data": data}
    run = trained_on(Finetune.model_validate(settings), folder / "begun", folder / "begun", folder, package_texts[0])
    return run.out


def test_a_classifier_is_pruned_distilled_quantized_and_served(
    classifier: Path, package_texts: tuple[Path, Path], tmp_path: Path
) -> None:
    run = run_here(_recipe(classifier, package_texts), tmp_path, "out")
    stages = sorted((tmp_path / "work").rglob("sparsity.json"))
    print(f"\nzeros after the chain: {max(found.share for one in stages if (found := load_sparsity(one.parent))):.1%}")
    for row in run.report()["measurements"]:
        print(f"simulated {row['name']}: source {row['source']}, result {row['result']}")
    source = _written(classifier, tmp_path / "source")
    folders = {"source fp32": source, "int8": run.out, "int8_static": run.out / "also" / "int8_static-onnx"}
    examples = _examples(classifier, package_texts[1])
    calls: dict[str, Call] = {"source in transformers": _transformers(classifier)}
    calls |= {name: _onnx_runtime(folder) for name, folder in folders.items()}
    times = _timed(calls, _longest(examples))
    accuracies = {name: _accuracy(call, examples) for name, call in calls.items()}
    for name in calls:
        size = f", {(folders[name] / 'model.onnx').stat().st_size / 1e6:.2f} MB" if name in folders else ""
        print(f"{name}: accuracy {accuracies[name]:.1%} of {len(examples)}{size}, {times[name]}")
    assert accuracies["source fp32"] == accuracies["source in transformers"] > 3 / len(PACKAGES)
    for name in ("int8", "int8_static"):
        assert accuracies[name] >= 0.95 * accuracies["source fp32"]
        assert times[name].upper < times["source fp32"].lower
    sizes = {name: (folder / "model.onnx").stat().st_size for name, folder in folders.items()}
    assert sizes["int8"] < 0.5 * sizes["source fp32"]


def test_latency_at_the_width_of_bert_base(package_encoder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = tmp_path / "source"
    config = transformers.BertConfig(vocab_size=1000, num_hidden_layers=3, max_position_embeddings=128)
    transformers.BertForSequenceClassification(config).save_pretrained(source)
    AutoTokenizer.from_pretrained(package_encoder).save_pretrained(source)
    file = write_sentences(tmp_path / "texts.jsonl")
    calls = {"fp32": _onnx_runtime(_written(source, tmp_path / "fp32"))}
    for scheme in ("int8", "int8_static", "int8_w8a16"):
        calibration = Calibration(path=str(file), samples=8, sequence_length=32)
        run = run_of(source, source, tmp_path / f"{scheme}-quantized", calibration=calibration)
        run.data_files = (file,)
        plain(scheme).apply(run)
        calls[scheme] = _onnx_runtime(_written(run.out, tmp_path / scheme))
    tokens_BT = torch.randint(1000, (1, 128))
    given = {"input_ids": tokens_BT, "attention_mask": torch.ones_like(tokens_BT), "token_type_ids": 0 * tokens_BT}
    times = _timed({"transformers": _transformers(source), **calls}, given)
    for name, found in times.items():
        print(f"\nthree layers of BERT-base, 128 tokens, one thread, {name}: {found}", end="")
    print()
    assert times["int8"].upper < times["fp32"].lower
    assert times["int8_static"].upper < times["fp32"].lower


def _recipe(classifier: Path, texts: tuple[Path, Path]) -> dict[str, Any]:
    """The documented recipe, with this model, these texts, and a training of minutes."""
    recipe: dict[str, Any] = yaml.safe_load(RECIPE.read_text())
    recipe["model"] = {"path": str(classifier)}
    recipe["calibration"] |= {"path": str(texts[0]), "samples": 128, "sequence_length": 64}
    recipe["chain"][1] |= {**SETTINGS, "steps": 100, "learning_rate": 5e-4}
    recipe["evaluate"] = [{"evaluator": "classification", "path": str(texts[1]), "sequence_length": 64}]
    return recipe


def _written(checkpoint: Path, out: Path) -> Path:
    run = run_of(checkpoint, checkpoint, out)
    run.task = "text-classification"
    Onnx().write(run)
    return out


def _onnx_runtime(folder: Path) -> Call:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])

    def call(given: Mapping[str, torch.Tensor]) -> Any:
        return session.run(["logits"], {name: value.numpy() for name, value in given.items()})[0]

    return call


def _transformers(folder: Path) -> Call:
    torch.set_num_threads(1)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()

    def call(given: Mapping[str, torch.Tensor]) -> Any:
        with torch.inference_mode():
            return model(**given).logits.numpy()

    return call


def _examples(folder: Path, file: Path) -> list[tuple[dict[str, torch.Tensor], int]]:
    """Every held-out text with the number of its label."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    numbers = json.loads((folder / "config.json").read_text())["label2id"]
    found = []
    for row in map(json.loads, file.read_text().splitlines()):
        tokens_BT = tokenizer(row["text"], truncation=True, max_length=64, return_tensors="pt")["input_ids"]
        given = {"input_ids": tokens_BT, "attention_mask": torch.ones_like(tokens_BT), "token_type_ids": 0 * tokens_BT}
        found.append((given, numbers[row["label"]]))
    return found


def _longest(examples: list[tuple[dict[str, torch.Tensor], int]]) -> dict[str, torch.Tensor]:
    return max((given for given, _ in examples), key=lambda given: given["input_ids"].shape[1])


def _accuracy(call: Call, examples: list[tuple[dict[str, torch.Tensor], int]]) -> float:
    return float(np.mean([int(call(given).argmax()) == label for given, label in examples]))


def _timed(calls: Mapping[str, Call], given: Mapping[str, torch.Tensor]) -> dict[str, Times]:
    """One call after the other, in turns: what else the machine does meets all of them alike."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(REPEATS + 5):
        for name, call in calls.items():
            begun = process_time()
            call(given)
            if number >= 5:
                taken[name].append((process_time() - begun) * 1e3)
    return {name: Times(*quantiles(found, n=4)) for name, found in taken.items()}
