"""Whole runs of the engine as its users start them: `python -m optcore` on real models.

Where it is no matter in which process a stage is done, the same walk is done in the test's own.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.classifiers import MakeClassifier, write_sentences
from fixtures.tiny_models import MakeModel
from fixtures.whole_runs import walk
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from optcore.events import AnyEvent, Notice, RunFailed, RunFinished, StageFinished, StageStarted, parse_event
from optcore.export.raw_reader import RawFiles
from optcore.recipe import load_recipe
from optcore.report import Report
from optcore.schemes import PRESETS
from optcore.verify import verify

pytestmark = pytest.mark.timeout(600)
Document = dict[str, Any]


def recipe(model: Path, **changes: Any) -> Document:
    document = {
        "model": {"path": str(model)},
        "calibration": {"dataset": "python-stdlib", "samples": 4, "sequence_length": 64},
        "chain": [{"technique": "ptq", "scheme": "nvfp4"}],
        "evaluate": [{"evaluator": "fidelity", "samples": 2, "sequence_length": 64}],
    }
    return {**document, **changes}


class Engine:
    """The program, with one work folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self._runs = 0

    def start(self, document: Document) -> "subprocess.Popen[bytes]":
        path = self._write(document)
        command = [sys.executable, "-m", "optcore", "run", str(path), "--work", str(self.work), "--out", str(self.out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)

    def _write(self, document: Document) -> Path:
        self._runs += 1
        path = self.folder / f"recipe{self._runs}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    @property
    def out(self) -> Path:
        return self.folder / f"out{self._runs}"

    def walk(self, document: Document) -> list[AnyEvent]:
        """The same run, its stages in this process."""
        path = self._write(document)
        return walk(path, self.out, self.work)

    def run(self, document: Document) -> list[AnyEvent]:
        process = self.start(document)
        stdout, _ = process.communicate()
        events = [parse_event(line) for line in stdout.splitlines()]
        assert process.returncode == (1 if isinstance(events[-1], RunFailed) else 0), events[-1]
        return events


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, stdlib_model: Path) -> tuple[Engine, list[AnyEvent]]:
    """One complete run of the shipped model."""
    engine = Engine(tmp_path_factory.mktemp("engine"))
    return engine, engine.run(recipe(stdlib_model))


def test_a_run_ends_in_a_complete_artifact(finished: tuple[Engine, list[AnyEvent]], stdlib_model: Path) -> None:
    engine, events = finished
    names = {path.name for path in engine.out.iterdir()}
    assert names >= {
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.json",
        "README.md",
        "report.json",
        "report.html",
    }
    manifest = json.loads((engine.out / "manifest.json").read_text())
    assert isinstance(events[-1], RunFinished)
    assert manifest["digest"] == events[-1].digest
    assert all(len(manifest[name]) == 64 for name in ("recipe_digest", "source_digest", "data_digest"))
    assert {file["path"] for file in manifest["files"]} == names - {"manifest.json"}
    assert [(each["role"], each["sha256"]) for each in manifest["lineage"]] == [("source", manifest["source_digest"])]
    assert {"torch", "compressed-tensors", "python", "hardware"} <= set(manifest["environment"])
    assert verify(engine.out) == ()
    pinned = load_recipe(engine.out / "recipe.yaml")
    assert pinned.model.path == stdlib_model.name  # a published recipe does not tell the folders of this machine


def test_the_report_holds_what_was_measured(finished: tuple[Engine, list[AnyEvent]], stdlib_model: Path) -> None:
    engine, _ = finished
    report = Report.model_validate_json((engine.out / "report.json").read_text())
    rows = {row.name: row for row in report.measurements}
    assert rows["weight_bytes"].source == (stdlib_model / "model.safetensors").stat().st_size
    assert rows["weight_bytes"].result == sum(path.stat().st_size for path in engine.out.glob("*.safetensors"))
    assert (rows["mean_kl"].result or 0) > 0
    assert [stage.name for stage in report.stages] == ["0-fetch", "1-ptq", "2-export", "3-evaluate"]
    assert all(stage.peak_memory_bytes > 50e6 for stage in report.stages)
    assert len(report.layer_errors) == 6
    assert {notes.engine.split()[0] for notes in report.deployment} >= {"vLLM", "SGLang", "transformers"}


def test_the_same_recipe_runs_nothing_again(finished: tuple[Engine, list[AnyEvent]], stdlib_model: Path) -> None:
    engine, first = finished
    again = engine.run({**recipe(stdlib_model), "name": "another name, the same work"})
    cached = {event.stage: event.cached for event in again if isinstance(event, StageFinished)}
    assert cached == {"0-fetch": False, "1-ptq": True, "2-export": True, "3-evaluate": True}
    assert again[-1] == first[-1]


def test_a_damaged_stage_is_run_again(finished: tuple[Engine, list[AnyEvent]], stdlib_model: Path) -> None:
    engine, first = finished
    keys = {event.stage: event.key for event in first if isinstance(event, StageFinished)}
    exported = engine.work / "stages" / keys["2-export"] / "files" / "config.json"
    exported.write_text("{}")
    again = engine.run(recipe(stdlib_model))
    cached = {event.stage: event.cached for event in again if isinstance(event, StageFinished)}
    assert cached == {"0-fetch": False, "1-ptq": True, "2-export": False, "3-evaluate": True}
    assert again[-1] == first[-1]


def test_kill_in_any_stage_then_run_again(
    finished: tuple[Engine, list[AnyEvent]], engine: Engine, stdlib_model: Path
) -> None:
    """Kill -9 of the conductor as each stage begins: no stage outlives it, finished ones are kept, bytes are equal."""
    _, undisturbed = finished
    document = recipe(stdlib_model)
    for stage in ("1-ptq", "2-export", "3-evaluate"):
        process = engine.start(document)
        with process:
            for event in _events(process):
                if isinstance(event, StageStarted) and event.stage == stage:
                    os.kill(process.pid, signal.SIGKILL)
                    break
        assert not engine.out.exists()
    last = engine.run(document)
    cached = {event.stage: event.cached for event in last if isinstance(event, StageFinished)}
    assert cached == {"0-fetch": False, "1-ptq": True, "2-export": True, "3-evaluate": False}
    assert last[-1] == undisturbed[-1]


def test_a_missed_gate_falls_back(engine: Engine, stdlib_model: Path) -> None:
    """A bound that no format meets, then one between both divergences: the first that meets it ends the list."""
    started, events = _gated(engine, stdlib_model, 1e-9, "int8")
    assert isinstance(events[-1], RunFailed)
    assert events[-1].failure.kind == "quality_gate", events[-1]
    assert re.fullmatch(
        r"1-ptq: kl is [\d.]+, the gate asks for at most 1e-09; "
        r"1-ptq-fallback1: kl is [\d.]+, the gate asks for at most 1e-09",
        events[-1].failure.message,
    )
    assert started == ["1-ptq", "1-ptq-fallback1"]
    started, events = _gated(engine, stdlib_model, 0.03, "int8", "fp8")
    assert isinstance(events[-1], RunFinished), events[-1]
    assert started == ["1-ptq", "1-ptq-fallback1"]
    report = Report.model_validate_json((engine.out / "report.json").read_text())
    assert (report.schemes, report.scheme) == (("int8",), PRESETS["int8"].title)
    first, second = report.trials
    assert (first.stage, first.tried, first.passed) == ("1-ptq", PRESETS["int4"].title, False)
    assert (second.stage, second.tried, second.passed) == ("1-ptq-fallback1", PRESETS["int8"].title, True)
    assert (first.then, second.then) == ("went on to 1-ptq-fallback1", "kept")
    assert first.value > first.bound == second.bound == 0.03 >= second.value > 0
    assert second.value == next(row.result for row in report.measurements if row.name == "mean_kl")
    assert RawFiles(engine.out).dtype("model.layers.0.mlp.up_proj.weight") == "I8"  # INT4 would be packed words


def _gated(engine: Engine, model: Path, bound: float, *fallback: str) -> tuple[list[str], list[AnyEvent]]:
    """A run of INT4 with a gate: the quantizations that it started, and its events."""
    gate = {"metric": "kl", "max": bound, "on_fail": "fallback"}
    quick = {"technique": "ptq", "rounding": "nearest", "smoothing": "none"}
    chain = [{**quick, "scheme": "int4", "gate": gate, "fallback": [{"scheme": scheme} for scheme in fallback]}]
    events = engine.walk(recipe(model, chain=chain))
    for said in (event.message for event in events if isinstance(event, Notice)):
        print(said)
    names = [event.stage for event in events if isinstance(event, StageStarted)]
    return [name for name in names if re.fullmatch(r"1-ptq(-fallback\d)?", name)], events


@pytest.mark.parametrize(("family", "scheme"), [("Qwen3", "fp8"), ("Mistral", "nvfp4"), ("Mixtral", "fp8_dynamic")])
def test_families_run_from_shards(family: str, scheme: str, engine: Engine, tiny_model: MakeModel) -> None:
    """Checkpoints in several files; transformers loads what comes out with every key in its place."""
    model = tiny_model(family, max_shard_size="300KB")
    assert len(list(model.glob("*.safetensors"))) > 1
    events = engine.walk(recipe(model, chain=[{"technique": "ptq", "scheme": scheme}]))
    assert isinstance(events[-1], RunFinished), events[-1]
    _, info = AutoModelForCausalLM.from_pretrained(engine.out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


def test_a_chain_that_does_not_quantize_ends_in_a_dense_checkpoint(engine: Engine, stdlib_model: Path) -> None:
    """A head that is tied to the embeddings is a matrix of its own after a rotation."""
    gate = {"metric": "agreement", "min": 0.9}
    chain = [{"technique": "rotate", "gate": gate}]
    events = engine.walk(recipe(stdlib_model, chain=chain, target={"format": "dense"}))
    assert isinstance(events[-1], RunFinished), events[-1]
    report = Report.model_validate_json((engine.out / "report.json").read_text())
    rows = {row.name: row for row in report.measurements}
    assert (report.schemes, report.coverage) == ((), None)
    assert report.scheme == "Hadamard rotation of residual stream and values"
    assert rows["parameters"].result == (rows["parameters"].source or 0) + 2048 * 256
    assert rows["bits_per_weight"].result == pytest.approx(16, rel=0.01)  # headers count too
    assert 0 < (rows["mean_kl"].result or 0) < 1e-3
    assert [(trial.stage, trial.value, trial.then) for trial in report.trials] == [
        ("1-rotate", rows["agreement"].result, "kept")
    ]
    _, info = AutoModelForCausalLM.from_pretrained(engine.out, output_loading_info=True)
    assert (info["missing_keys"], info["unexpected_keys"]) == (set(), set())


def test_a_classifier_is_measured_on_labelled_texts(engine: Engine, tiny_classifier: MakeClassifier) -> None:
    text = write_sentences(engine.folder / "labelled.jsonl")
    document = {
        "model": {"path": str(tiny_classifier("Bert"))},
        "calibration": {"path": str(text), "samples": 4, "sequence_length": 16},
        "chain": [{"technique": "ptq", "scheme": "int8", "gate": {"metric": "accuracy", "min": 1, "on_fail": "warn"}}],
        "evaluate": [{"evaluator": "fidelity"}, {"evaluator": "classification", "path": str(text)}],
    }
    events = engine.walk(document)
    assert isinstance(events[-1], RunFinished), events[-1]
    report = Report.model_validate_json((engine.out / "report.json").read_text())
    rows = {row.name: row for row in report.measurements}
    assert (rows["agreement"].result or 0) > 0.9
    assert rows["accuracy"].baseline is not None
    assert len(report.layer_errors) == 2
    assert report.task == "text-classification"
    (trial,) = report.trials
    assert (trial.value, trial.passed, trial.then) == (rows["accuracy"].result, False, "kept with a warning")
    assert report.notices == (
        f"1-ptq: accuracy is {trial.value:.4g}, the gate asks for at least 1",
        "Fidelity to the source was not measured: this model is for text-classification",
    )
    assert str(engine.folder) not in report.to_json()
    _, info = AutoModelForSequenceClassification.from_pretrained(engine.out, output_loading_info=True)
    assert (info["missing_keys"], info["unexpected_keys"]) == (set(), set())


def test_labels_are_not_measured_on_a_language_model(engine: Engine, tiny_model: MakeModel) -> None:
    text = write_sentences(engine.folder / "labelled.jsonl")
    last = engine.walk(recipe(tiny_model("Llama"), evaluate=[{"evaluator": "classification", "path": str(text)}]))[-1]
    assert isinstance(last, RunFailed)
    assert (last.failure.code, last.failure.field) == ("recipe_invalid", "/evaluate/0")
    assert "this one is for text-generation" in last.failure.message


Damage = Callable[[Path], None]


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _unknown(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nosuch"}))


def _quantized_already(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:9000])


def _gone(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (_pickle_only, "checkpoint_unsafe"),
        (_no_tokenizer, "checkpoint_bad"),
        (_unknown, "architecture_unknown"),
        (_quantized_already, "checkpoint_bad"),
        (_cut, "checkpoint_bad"),
        (_gone, "source_not_found"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_bad_models_end_in_a_typed_error(damage: Damage, code: str, engine: Engine, tiny_model: MakeModel) -> None:
    folder = shutil.copytree(tiny_model("Llama"), engine.folder / "model")
    damage(folder)
    last = engine.walk(recipe(folder))[-1]
    assert isinstance(last, RunFailed)
    failure = last.failure
    assert failure.code == code, failure
    assert failure.kind == "user_error"
    assert failure.field.startswith("/model")
    assert failure.remedy
    assert failure.stage == "0-fetch"
    assert not failure.retryable


def test_too_little_text_names_the_calibration(engine: Engine, tiny_model: MakeModel) -> None:
    text = engine.folder / "few.txt"
    text.write_text("a few words")
    document = recipe(tiny_model("Llama"), calibration={"path": str(text), "samples": 4, "sequence_length": 64})
    last = engine.walk(document)[-1]
    assert isinstance(last, RunFailed)
    assert (last.failure.code, last.failure.field) == ("data_unusable", "/calibration")


def test_a_group_that_does_not_divide_names_the_layer(engine: Engine, tiny_model: MakeModel) -> None:
    folder = shutil.copytree(tiny_model("Llama"), engine.folder / "model")
    _with_intermediate_size(folder, 192)
    last = engine.walk(recipe(folder, chain=[{"technique": "ptq", "scheme": "int4"}]))[-1]
    assert isinstance(last, RunFailed)
    assert last.failure.code == "recipe_invalid"
    assert "mlp.down_proj has 192 inputs, which groups of 128 do not divide" in last.failure.message
    assert "ignore" in last.failure.remedy


def test_an_existing_output_is_never_overwritten(engine: Engine, stdlib_model: Path) -> None:
    with engine.start(recipe(stdlib_model)) as process:
        engine.out.mkdir()
        events = list(_events(process))
    assert process.returncode == 1
    assert isinstance(events[-1], RunFailed)
    assert "exists already" in events[-1].failure.message


def test_a_work_folder_that_is_a_file_is_a_typed_error(engine: Engine, stdlib_model: Path) -> None:
    engine.work.write_text("")
    last = engine.walk(recipe(stdlib_model))[-1]
    assert isinstance(last, RunFailed)
    assert (last.failure.code, last.failure.kind) == ("folder_unusable", "infrastructure")


def test_a_recipe_with_a_typo_says_where(engine: Engine, stdlib_model: Path) -> None:
    document = recipe(stdlib_model, chain=[{"technique": "ptq", "scheme": "nvfp4", "scale_serch": "mse"}])
    last = engine.run(document)[-1]
    assert isinstance(last, RunFailed)
    assert last.failure.field == "/chain/0/scale_serch"
    assert "remove this key" in last.failure.remedy


def _events(process: "subprocess.Popen[bytes]") -> Iterator[AnyEvent]:
    assert process.stdout
    return (parse_event(line) for line in process.stdout)


def _with_intermediate_size(folder: Path, size: int) -> None:
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    config.intermediate_size = size
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
