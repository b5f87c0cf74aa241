"""Results in the engines that serve them: the harness on weights that are the source's own, and what can go wrong."""

import errno
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures import served
from fixtures.engine_runs import recipe_for
from fixtures.exporting import run_of
from fixtures.served import write_llama
from torch.nn.functional import kl_div, log_softmax

from optcore.artifact import Outcome, assemble
from optcore.evaluate import Engines, Fidelity
from optcore.evaluate.reference import _mapped
from optcore.events import AnyEvent, Notice
from optcore.measures import evaluators, result_evaluators, step_evaluators
from optcore.plan import results
from optcore.recipe import recipe_from
from optcore.report import EngineRun, Task
from optcore.runners import find_runner
from optcore.serving import comparison
from optcore.serving.comparison import distance
from optcore.serving.process import EngineFailed, EngineStopped, run_engine
from optcore.serving.session import ServingTask
from optcore.serving.transformers import Session
from optcore.stage import Inputs

SMALL = Engines(prompt_tokens=16, new_tokens=4, samples=2, sequence_length=64, source=False)


def measured(
    evaluator: Engines, model: Path, exported: Path, target: str, out: Path, task: Task = "text-generation"
) -> tuple[list[EngineRun], list[str]]:
    """What an evaluator found, and the notices."""
    events: list[AnyEvent] = []
    run = run_of(model, model, out, events)
    run.export, run.target, run.task = exported, target, task
    assert evaluator.measure(run) == []
    rows = run.results["engine_runs"]
    assert isinstance(rows, list)
    return [EngineRun.model_validate(row) for row in rows], [e.message for e in events if isinstance(e, Notice)]


def test_a_gguf_file_of_the_source_is_the_source(served_gguf: Path, stdlib_model: Path, tmp_path: Path) -> None:
    (found,), notices = measured(SMALL, stdlib_model, served_gguf, "gguf", tmp_path / "out")
    assert (found.engine, found.target, found.is_source, notices) == ("llama.cpp", "gguf", False, [])
    assert found.positions == 128
    assert found.kl is not None
    assert found.kl < 1e-6  # its KV cache is in float16
    assert found.agreement == 1
    assert found.file_bytes == (served_gguf / "model.gguf").stat().st_size
    assert found.decode_speed
    assert found.prefill_speed > found.decode_speed > 0
    assert found.peak_memory_bytes < 150e6  # numpy and the library; torch alone would be more


def test_an_onnx_graph_of_the_source_is_the_source(served_onnx: Path, stdlib_model: Path, tmp_path: Path) -> None:
    (found,), notices = measured(SMALL, stdlib_model, served_onnx, "onnx", tmp_path / "out")
    assert (found.engine, notices) == ("onnxruntime-genai", [])
    assert found.kl is not None
    assert found.kl < 1e-9
    assert found.agreement == 1
    assert found.file_bytes == sum((served_onnx / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))


def test_wrong_weights_are_far_from_the_source(
    stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "_turned", lambda weight_NK, heads: weight_NK)
    write_llama(stdlib_model, tmp_path / "model.gguf")
    (found,), _ = measured(SMALL, stdlib_model, tmp_path, "gguf", tmp_path / "out")
    assert found.kl is not None
    assert found.kl > 0.1


def test_the_source_is_measured_beside_it(stdlib_model: Path, tmp_path: Path) -> None:
    """Nothing here reads AWQ, which costs a notice and no more. The source is in bfloat16, its reference in float32."""
    evaluator = SMALL.model_copy(update={"source": True})
    (found,), notices = measured(evaluator, stdlib_model, stdlib_model, "awq", tmp_path / "out")
    assert (found.engine, found.target, found.is_source) == ("transformers", "dense", True)
    assert found.kl is not None
    assert 0 < found.kl < 1e-3
    assert notices == [
        "the awq result was not measured in an engine: reading it needs gptqmodel, which this machine lacks"
    ]


def test_an_encoder_is_run_by_onnx_runtime(tiny_classifier: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_classifier("Bert")
    _export_classifier(model, tmp_path / "model.onnx")
    (found,), _ = measured(SMALL, model, tmp_path, "onnx", tmp_path / "out", "text-classification")
    assert (found.engine, found.positions, found.new_tokens) == ("onnxruntime", 2, 0)
    assert found.kl is not None
    assert found.kl < 1e-9
    assert found.decode_speed is None


def _export_classifier(model: Path, out: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    ids_BT = torch.ones(1, 8, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older of torch's exporters, deprecated, takes a tenth of the time
        torch.onnx.export(
            AutoModelForSequenceClassification.from_pretrained(model).eval(),
            (ids_BT, torch.ones_like(ids_BT)),
            str(out),
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_axes={"input_ids": {1: "length"}, "attention_mask": {1: "length"}},
            dynamo=False,
        )


def test_a_broken_file_is_a_notice(stdlib_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 64)
    found, notices = measured(SMALL, stdlib_model, tmp_path, "gguf", tmp_path / "out")
    assert found == []
    said = "it ended with status 1; the end of the engine's log says why"
    assert notices == [f"the gguf result was not measured in llama.cpp: {said}"]
    assert "llama.cpp does not load model.gguf" in capfd.readouterr().err


@pytest.mark.parametrize("lasts", [True, False])
def test_only_a_model_larger_than_the_machine_is_left_out_for_good(
    lasts: bool, stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.gguf").touch()
    os.truncate(tmp_path / "model.gguf", 1 << 40 if lasts else 1 << 20)  # no byte of it is on the disk
    monkeypatch.setattr("optcore.evaluate.served.machine_bytes", lambda: 0.0)
    run = run_of(stdlib_model, stdlib_model, tmp_path / "out")
    run.export, run.target = tmp_path, "gguf"
    SMALL.measure(run)
    (notice,) = run.results["notices"]  # type: ignore[misc]
    assert notice.endswith(f"does not fit into this machine's {'' if lasts else 'free '}memory as a whole")
    assert run.results.get("reusable", True) is lasts


def test_too_little_text_is_a_notice(stdlib_model: Path, served_gguf: Path, tmp_path: Path) -> None:
    run = run_of(stdlib_model, stdlib_model, tmp_path / "out")
    (tmp_path / "short.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    run.calibration = run.calibration.model_copy(update={"path": str(tmp_path), "dataset": None})
    run.data_files = (tmp_path / "short.jsonl",)
    run.export, run.target = served_gguf, "gguf"
    SMALL.measure(run)
    assert run.results["engine_runs"] == []
    assert "for want of a reference" in str(run.results["notices"])


@pytest.mark.parametrize(
    ("place", "raised", "said"),
    [
        ("os.posix_fallocate", OSError(errno.ENOSPC, "No space left on device"), "no room left"),
        ("optcore.evaluate.reference.Decoder.layer", torch.OutOfMemoryError("CUDA out of memory."), "out of memory"),
        ("optcore.evaluate.reference.np.save", MemoryError(), "out of memory"),
        ("optcore.evaluate.reference.Texts", ValueError("odd"), "ValueError: odd"),
    ],
    ids=["disk", "torch", "memory", "value"],
)
def test_no_reference_fails_no_job(
    place: str,
    raised: Exception,
    said: str,
    stdlib_model: Path,
    served_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*given: object, **more: object) -> None:
        raise raised

    monkeypatch.setattr(place, fail)
    run = run_of(stdlib_model, stdlib_model, tmp_path / "out")
    run.export, run.target = served_gguf, "gguf"
    SMALL.measure(run)
    assert run.results["engine_runs"] == []
    assert "for want of a reference" in str(run.results["notices"])
    assert said in str(run.results["notices"])
    assert run.results.get("reusable", True) is isinstance(raised, ValueError), "another run may find more room"


def test_too_small_a_disk_is_told_before_the_source_is_walked(
    stdlib_model: Path, served_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two windows of 64 tokens, a vocabulary of 2048, four bytes each: 1 MiB."""
    room = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room._replace(free=(1 << 20) - 1))
    monkeypatch.delattr("optcore.evaluate.reference._write_logits")
    found, (notice,) = measured(SMALL, stdlib_model, served_gguf, "gguf", tmp_path / "out")
    assert found == []
    assert "the source's logits take 1 MiB" in notice


def test_a_file_of_logits_has_its_blocks(tmp_path: Path) -> None:
    _mapped(tmp_path / "source.npy", (4, 8, 4096))
    assert (tmp_path / "source.npy").stat().st_blocks * 512 >= 4 * 8 * 4096 * 4


@pytest.fixture
def task(tmp_path: Path) -> ServingTask:
    np.save(tmp_path / "tokens.npy", np.ones((1, 4), np.int64))
    return ServingTask("text-generation", str(tmp_path / "tokens.npy"), "", 4, 2, 1)


def test_an_engine_that_hangs_is_ended(stdlib_model: Path, tmp_path: Path, task: ServingTask) -> None:
    with pytest.raises(EngineStopped, match=r"it took longer than 0\.05 s"):
        run_engine("transformers", stdlib_model, task, tmp_path, 0.05)


def test_an_engine_without_an_answer_is_none(
    stdlib_model: Path, tmp_path: Path, task: ServingTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("true"))
    with pytest.raises(EngineFailed, match="without an answer"):
        run_engine("transformers", stdlib_model, task, tmp_path, 9)
    with pytest.raises(EngineStopped, match="could not be started"):
        run_engine("transformers", stdlib_model, task, tmp_path / "missing", 9)


def test_code_in_a_folder_is_never_run(stdlib_model: Path, tmp_path: Path, task: ServingTask) -> None:
    folder, mark = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(stdlib_model, folder)
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')\nC = M = None\n")
    with pytest.raises(ValueError, match="custom code"):
        Session(folder, task)
    assert not mark.exists()


def test_distance_is_the_divergence_of_the_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    source_PV, own_PV = (torch.randn(7, 50, generator=torch.Generator().manual_seed(n)) * 9 for n in (1, 2))
    p, q = (log_softmax(logits.double(), -1) for logits in (source_PV, own_PV))
    expected = kl_div(q, p, log_target=True, reduction="sum").item()
    agreements = int((source_PV.argmax(-1) == own_PV.argmax(-1)).sum())
    for chunk in (1, 150, 1 << 20):
        monkeypatch.setattr(comparison, "_CHUNK_elements", chunk)
        found = distance(source_PV.numpy(), own_PV.numpy())
        assert (found.positions, found.agreements) == (7, agreements)
        assert found.kl == pytest.approx(expected, rel=1e-12)


def test_distance_of_two_known_distributions() -> None:
    halves, quarters = np.log(np.float32([[0.5, 0.5]])), np.log(np.float32([[0.25, 0.75]]))
    assert distance(halves, quarters + 100).kl == pytest.approx(0.5 * np.log(4 / 3), abs=1e-5)


@pytest.mark.parametrize(
    ("own_PV", "said"), [(np.zeros((1, 3)), "shape"), (np.array([[0, np.nan]]), "not finite")], ids=["shape", "nan"]
)
def test_logits_that_are_none_are_no_distance(own_PV: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        distance(np.zeros((1, 2), np.float32), own_PV)


@pytest.mark.parametrize(
    ("target", "formats", "task", "engine", "why"),
    [
        ("gguf", ("q8_0",), "text-generation", "llama.cpp", ""),
        ("onnx", ("int4",), "text-generation", "onnxruntime-genai", ""),
        ("onnx", ("int8",), "text-classification", "onnxruntime", ""),
        ("compressed-tensors", ("nvfp4",), "text-generation", "transformers", ""),
        ("dense", (), "fill-mask", "transformers", ""),
        ("modelopt", ("fp8",), "text-generation", None, "no engine that runs on a CPU reads modelopt"),
        ("compact", ("int4",), "text-generation", None, "no engine that runs on a CPU reads compact"),
        (
            "gptq",
            ("int4",),
            "text-generation",
            None,
            "reading it needs gptqmodel and optimum, which this machine lacks",
        ),
        ("onnx", ("fp8",), "text-generation", None, "does not load fp8 from onnx"),
    ],
)
def test_the_engine_is_the_one_that_reads_the_target(
    target: str, formats: tuple[str, ...], task: Task, engine: str | None, why: str
) -> None:
    runner, said = find_runner(target, formats, "dense", task)
    assert (runner.engine if runner else None) == engine
    assert why in said if why else said == ""


def test_recipes_for_cpus_and_for_several_targets_have_it(stdlib_model: Path) -> None:
    ptq = {"technique": "ptq", "scheme": "int4"}

    def asked(**more: object) -> list[str]:
        return [each.evaluator for each in evaluators(recipe_from(recipe_for(stdlib_model, ptq, **more)))]

    fidelity = [{"evaluator": "fidelity"}]
    assert asked(evaluate=fidelity) == ["fidelity"]
    assert asked(evaluate=fidelity, target={"format": "gguf"}) == ["fidelity", "engines"]
    assert asked(evaluate=fidelity, also=[{"format": "dense"}]) == ["fidelity", "engines"]
    assert asked(evaluate=[{"evaluator": "engines"}], also=[{"format": "dense"}]) == ["engines"]
    assert asked(target={"format": "gguf"}) == []


def test_the_source_is_measured_once_and_no_step_is(stdlib_model: Path) -> None:
    recipe = recipe_from(
        recipe_for(
            stdlib_model,
            {"technique": "ptq", "scheme": "int4"},
            evaluate=[{"evaluator": "fidelity"}, {"evaluator": "engines"}],
        )
    )
    assert result_evaluators(recipe, 1024, "") == (Fidelity(), Engines())
    assert result_evaluators(recipe, 1024, "int4-gguf") == (Fidelity(), Engines(source=False))
    assert step_evaluators(recipe) == (Fidelity(),)


def engine_run(**more: object) -> EngineRun:
    fields: dict[str, object] = {
        "engine": "llama.cpp",
        "engine_version": "1",
        "target": "gguf",
        "file_bytes": 3_000_000,
        "threads": 2,
        "prompt_tokens": 128,
        "new_tokens": 32,
        "load_seconds": 0.5,
        "prefill_speed": 1000,
        "decode_speed": 100,
        "peak_memory_bytes": 75_000_000,
        "kl": 0.012,
        "agreement": 0.97,
        "positions": 1024,
    }
    return EngineRun.model_validate(fields | more)


def test_the_main_report_compares_all_results(stdlib_model: Path, tmp_path: Path) -> None:
    ptq = {"technique": "ptq", "scheme": "int4"}
    recipe = recipe_from(recipe_for(stdlib_model, ptq, also=[{"format": "dense"}]))
    source, main, other = engine_run(target="dense", is_source=True), engine_run(), engine_run(target="dense", kl=0.5)
    inputs = Inputs(
        task="fill-mask", source=str(stdlib_model), checkpoint=str(stdlib_model), exported=str(stdlib_model)
    )
    left: list[list[EngineRun]] = [[source, main], [other]]
    why = "the dense result was not measured in transformers: it ended with status 1"
    outcomes = [
        Outcome(
            result,
            recipe,
            inputs,
            (),
            {"measurements": [], "engine_runs": [row.model_dump() for row in rows], **more},
            *((),) * 3,
        )
        for result, rows, more in zip(results(recipe), left, ({}, {"not_in_engines": [why]}), strict=True)
    ]
    assemble(outcomes, tmp_path / "out")
    named = other.model_copy(update={"result": "int4-dense"})
    for folder, expected, notices in (("", [source, main, named], [why]), ("also/int4-dense", [source, named], [])):
        report = json.loads((tmp_path / "out" / folder / "report.json").read_text())
        assert [EngineRun.model_validate(row) for row in report["engine_runs"]] == expected
        assert report["notices"] == notices
