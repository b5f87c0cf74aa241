"""Encoders as ONNX graphs: the codes of the pass bit for bit, and the logits of the simulation by ONNX Runtime."""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from fixtures.classifiers import MakeClassifier, sentences, write_sentences
from fixtures.exporting import plain, run_of
from onnx import numpy_helper
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from optcore.conditional import Conditional, Window
from optcore.errors import ExportMismatch, RecipeError
from optcore.export.onnx import Onnx
from optcore.links import link_checkpoint
from optcore.onnx.encoder_check import Call, Expected, check_run
from optcore.onnx.graph_weights import check_weights, graph_linears
from optcore.onnx.rounded_linears import MODULE
from optcore.recipe import recipe_from
from optcore.references import Calibration
from optcore.report import Task
from optcore.run import Run
from optcore.streaming.decoder import Decoder
from optcore.streaming.quantized import QuantizedCheckpoint
from optcore.streaming.simulate import as_quantized
from optcore.targets import check_exports

Exported = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def encoder(tiny_classifier: MakeClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer: what takes time here is torch's exporter, layer by layer."""
    folder, whole = tmp_path_factory.mktemp("layer"), tiny_classifier("Bert")
    model = AutoModelForSequenceClassification.from_pretrained(whole, num_hidden_layers=1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(whole).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """`exported("int8")` is a quantized BERT and what was written of it; `""` a dense one."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(scheme: str) -> tuple[Path, Path]:
        if scheme not in made:
            folder = tmp_path_factory.mktemp("encoder")
            checkpoint = _quantized(encoder, folder, scheme) if scheme else encoder
            _write(checkpoint, folder / "out")
            made[scheme] = checkpoint, folder / "out"
        return made[scheme]

    return make


def _quantized(source: Path, folder: Path, scheme: str) -> Path:
    file = write_sentences(folder / "texts.jsonl")
    calibration = Calibration(path=str(file), samples=8, sequence_length=32)
    run = run_of(source, source, folder / "quantized", calibration=calibration)
    run.data_files = (file,)
    plain(scheme).apply(run)
    return run.out


def _write(checkpoint: Path, out: Path, task: Task = "text-classification", **settings: Any) -> Run:
    run = run_of(checkpoint, checkpoint, out)
    run.task = task
    Onnx.model_validate(settings).write(run)
    return run


def _session(folder: Path, optimized: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])


def _logits(folder: Path, texts: list[str], session: Any = None) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    """Of padded texts, by the folder's own tokenizer; and what the tokenizer made of them."""
    session = session or _session(folder)
    given = dict(AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", padding=True))
    wanted = {one.name for one in session.get_inputs()}
    named = {name: value.numpy() for name, value in given.items() if name in wanted}
    if missing := wanted - named.keys():
        named |= {name: np.zeros_like(named["input_ids"]) for name in missing}
    return session.run(["logits"], named)[0], given


TEXTS = ["good film", "the food was not very good so bad", "a"]


def test_a_dense_classifier_says_what_transformers_says(exported: Exported) -> None:
    checkpoint, out = exported("")
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    for texts in (TEXTS, TEXTS[:1]):
        logits, given = _logits(out, texts)
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(**given).logits.numpy(), atol=1e-5)
    graph = onnx.load(out / "model.onnx").graph
    assert [one.name for one in graph.input] == ["input_ids", "attention_mask", "token_type_ids"]
    axes = [[axis.dim_param or axis.dim_value for axis in one.type.tensor_type.shape.dim] for one in graph.input]
    assert axes == [["batch", "sequence"]] * 3
    assert json.loads((out / "config.json").read_text()) == json.loads((checkpoint / "config.json").read_text())


def test_a_masked_language_model_whose_head_is_tied(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)  # importing it fails: only generators need it
    config = AutoConfig.from_pretrained(encoder, vocab_size=48)
    model = AutoModelForMaskedLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "source")
    _write(tmp_path / "source", tmp_path / "out", "fill-mask")
    assert "torchvision" not in caplog.text
    tokens_BT = torch.tensor([[2, 5, 9, 7, 3]])
    given = {"input_ids": tokens_BT, "attention_mask": torch.ones_like(tokens_BT), "token_type_ids": 0 * tokens_BT}
    (logits,) = _session(tmp_path / "out").run(["logits"], {name: value.numpy() for name, value in given.items()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(**given).logits.numpy(), atol=1e-5)
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    tables = [one for one in graph.initializer if sorted(one.dims) == [32, 48]]
    assert len(tables) == 1  # the head is the table of tokens, stored once


@pytest.mark.parametrize("scheme", ["", "int8"])
def test_the_file_does_not_say_where_it_was_made(scheme: str, exported: Exported) -> None:
    _, out = exported(scheme)
    written = (out / "model.onnx").read_bytes()
    for place in (Path(torch.__file__).parents[1], Path(transformers.__file__).parents[1], Path(__file__).parents[2]):
        assert str(place).encode() not in written
    assert not re.search(rb'File "|\.py\b', written)
    model = onnx.load(out / "model.onnx")
    notes = {one.key for node in model.graph.node for one in node.metadata_props}
    assert notes == ({MODULE} if scheme else set())
    assert not any(one.metadata_props for one in (*model.graph.value_info, *model.graph.initializer, model.graph))


@pytest.mark.parametrize("scheme", ["int8", "int8_static", "int8_w8a16"])
def test_codes_and_scales_are_those_of_the_pass(scheme: str, exported: Exported) -> None:
    checkpoint, out = exported(scheme)
    state, found = QuantizedCheckpoint(checkpoint), graph_linears(out / "model.onnx")
    assert found.keys() == set(state.description.modules)
    assert len(found) == 6
    for name, linear in found.items():
        assert np.array_equal(linear.weight_NK, state.weight(name).numpy())
    scales = set[float]().union(*(linear.input_scales for linear in found.values()))
    assert (scales == {1.0}) == (scheme == "int8")
    assert (not scales) == (scheme == "int8_w8a16")


@pytest.mark.parametrize("scheme", ["int8", "int8_static", "int8_w8a16"])
def test_onnx_runtime_computes_the_simulation(scheme: str, exported: Exported) -> None:
    """To the last digits, but for texts in which a value lies between two codes, and the order of sums decides."""
    checkpoint, out = exported(scheme)
    texts = [text for text, _ in sentences(24)]
    logits, given = _logits(out, texts)
    decoder = Decoder(checkpoint, torch.device("cpu"))
    model = decoder.load_all()
    with torch.no_grad():
        dense = model(**given).logits.numpy()
        with as_quantized(decoder):
            errors = np.abs(logits - model(**given).logits.numpy()).max(1)
    print(f"{scheme}: {np.mean(errors < 1e-5):.0%} of texts to 1e-5, the largest error {errors.max():.4f}")
    assert np.mean(errors < 1e-5) >= (0.5 if scheme != "int8_w8a16" else 1)
    assert errors.max() < np.abs(logits - dense).max()


@pytest.mark.parametrize(("scheme", "fused"), [("int8", 6), ("int8_static", 6), ("int8_w8a16", 0)])
def test_onnx_runtime_multiplies_integers(scheme: str, fused: int, exported: Exported, tmp_path: Path) -> None:
    _session(exported(scheme)[1], tmp_path / "optimized.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["MatMulIntegerToFloat"] == fused
    assert not kinds["MatMulNBits"]  # it would round the inputs of int8_w8a16


def test_weights_take_a_byte(exported: Exported) -> None:
    for scheme in ("int8", "int8_w8a16"):
        graph = onnx.load(exported(scheme)[1] / "model.onnx").graph
        codes = [one for one in graph.initializer if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 2]
        assert sum(int(np.prod(one.dims)) for one in codes) == 4 * 32 * 32 + 2 * 32 * 64


@pytest.mark.proof
def test_half_precision(exported: Exported, tmp_path: Path) -> None:
    checkpoint, whole = exported("int8")
    _write(checkpoint, tmp_path / "out", plain="fp16")
    half, _ = _logits(tmp_path / "out", TEXTS)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, _logits(whole, TEXTS)[0], atol=0.05)
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    floats = {one.name for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT and one.dims}
    assert not any("embeddings" in name or "LayerNorm" in name for name in floats)


@pytest.mark.proof
def test_layers_with_equal_weights_are_stored_once(tiny_classifier: MakeClassifier, tmp_path: Path) -> None:
    """Tied layers, and layers that a merge repeats."""
    source = tmp_path / "source"
    model = AutoModelForSequenceClassification.from_pretrained(tiny_classifier("Bert"))
    first, second = model.bert.encoder.layer
    second.load_state_dict(first.state_dict())
    first.attention.self.query.weight.data.zero_()
    model.save_pretrained(source)
    AutoTokenizer.from_pretrained(tiny_classifier("Bert")).save_pretrained(source)
    checkpoint = _quantized(source, tmp_path, "int8")
    _write(checkpoint, tmp_path / "out")  # which checks the weights
    codes = [one for one in onnx.load(tmp_path / "out" / "model.onnx").graph.initializer if "codes" in one.name]
    assert len(codes) == 7  # one query more than a layer


def test_a_graph_that_was_changed_is_found_out(exported: Exported, tmp_path: Path) -> None:
    checkpoint, out = exported("int8_static")
    state = QuantizedCheckpoint(checkpoint)
    calls = [_call(out, seed) for seed in range(2)]
    check_run(out / "model.onnx", Expected(calls, 0.0))
    _edited(out, tmp_path, ".codes_KN", lambda codes: codes ^ (np.arange(codes.size).reshape(codes.shape) == 5))
    with pytest.raises(ExportMismatch, match="decodes to"):
        check_weights(tmp_path / "model.onnx", state)
    _edited(out, tmp_path, ".input_scale", lambda scale: scale * np.float32(1.001))
    with pytest.raises(ExportMismatch, match="rounds its input by"):
        check_weights(tmp_path / "model.onnx", state)
    _edited(out, tmp_path, "LayerNorm.bias", lambda bias: bias + np.float32(0.1))
    check_weights(tmp_path / "model.onnx", state)
    with pytest.raises(ExportMismatch, match="logits differ from the simulated ones"):
        check_run(tmp_path / "model.onnx", Expected(calls, 0.0))


def _call(folder: Path, seed: int) -> Call:
    tokens_BT = torch.randint(32, (4, 9), generator=torch.Generator().manual_seed(seed))
    inputs = {"input_ids": tokens_BT, "attention_mask": torch.ones_like(tokens_BT), "token_type_ids": 0 * tokens_BT}
    logits = _session(folder).run(["logits"], {name: value.numpy() for name, value in inputs.items()})[0]
    return Call(inputs, torch.from_numpy(logits))


def _edited(folder: Path, to: Path, ending: str, edit: Callable[[Any], Any]) -> None:
    model = onnx.load(folder / "model.onnx")
    one = next(one for one in model.graph.initializer if one.name.endswith(ending))
    values = numpy_helper.to_array(one)
    one.CopyFrom(numpy_helper.from_array(edit(values).astype(values.dtype), one.name))
    onnx.save(model, to / "model.onnx")


@pytest.mark.parametrize(
    ("task", "chosen", "refused"),
    [
        ("text-classification", {"scheme": "int4_g32"}, "int4_g32"),
        ("fill-mask", {"scheme": "int8", "also": ["int4"]}, "int4"),
        ("fill-mask", {"scheme": "int8", "also": ["int8_static", "int8_w8a16"]}, None),
        ("fill-mask", {"scheme": "int8", "also": ["fp8"]}, None),  # other targets are for that
    ],
)
def test_formats_without_operators_are_refused_before_any_work(
    task: Task, chosen: dict[str, Any], refused: str | None, encoder: Path
) -> None:
    document = {
        "model": {"path": str(encoder)},
        "chain": [{"technique": "ptq", "propagate": "original", **chosen}],
        "target": {"format": "onnx"},
    }
    if refused is None:
        check_exports(recipe_from(document), encoder, task)
        return
    with pytest.raises(RecipeError, match=f"ONNX cannot hold {refused} of an encoder") as error:
        check_exports(recipe_from(document), encoder, task)
    assert error.value.field == "/chain/0/scheme"


def test_conditions_have_no_place_in_a_graph(encoder: Path, tmp_path: Path) -> None:
    link_checkpoint(encoder, tmp_path)
    (tmp_path / "conditional.json").write_text(
        Conditional(window=Window(tokens=4, sinks=0, layers=(0,))).model_dump_json()
    )
    with pytest.raises(RecipeError, match=r"as conditional\.json says"):
        _write(tmp_path, tmp_path / "out")
