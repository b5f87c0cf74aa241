"""Every number format from the real model to files and back: our decoder, and transformers with compressed-tensors."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from fixtures.exporting import plain, run_of, simulated_logits
from fixtures.tiny_models import MakeModel
from transformers import AutoModelForCausalLM

from optcore.calibration.text import Texts
from optcore.errors import RecipeError
from optcore.evaluate import Fidelity
from optcore.export import CompressedTensors
from optcore.export.compressed_tensors_decoder import CompressedDecoder
from optcore.references import Calibration
from optcore.report import Measurement
from optcore.schemes import PRESETS
from optcore.streaming.reader import TensorReader
from optcore.streaming.simulate import Simulation
from optcore.techniques import Ptq

CALIBRATION = Calibration(dataset="python-stdlib", samples=8, sequence_length=128)
SCHEMES = [
    "fp8",
    "fp8_dynamic",
    "fp8_block",
    "int8",
    "int8_static",
    "int8_w8a16",
    "int4",
    "int4_asym_g32",
    "int4_fp8",
    "int3",
    "int2_g16",
    "nvfp4",
    "nvfp4_w4a16",
    "mxfp4",
    "mxfp8",
]
"""One of each kind; the proofs run them all."""
BF16_NOISE = 8e-3
"""Computing this model in bfloat16 costs about this much by itself, more than 8-bit weights do."""
SEARCHED = {"rounding": "nearest", "scale_search": "mse", "smoothing": "none"}
"""Nothing but the scales differs from `PLAIN`."""
PLAIN = {**SEARCHED, "scale_search": "max"}
BY_DEFAULT = ("fp8", "int4", "nvfp4")
"""With smoothing and error feedback too, which take most of the time and change no layout."""
KV_CACHE = {"fp8_dynamic": "fp8", "nvfp4_w4a16": "fp8"}  # with and without activations of their own


class Quantized(NamedTuple):
    """The folders of one quantized model."""

    checkpoint: Path
    export: Path


Make = Callable[..., Quantized]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory, stdlib_model: Path) -> Make:
    made: dict[str, Quantized] = {}

    def make(scheme: str, **settings: str) -> Quantized:
        key = f"{scheme} {sorted(settings.items())}"
        if key not in made:
            technique = Ptq.model_validate({"scheme": scheme, "kv_cache": KV_CACHE.get(scheme), **settings})
            made[key] = _quantize(technique, stdlib_model, tmp_path_factory.mktemp(scheme))
        return made[key]

    return make


@pytest.fixture(scope="module")
def text_BT(stdlib_model: Path) -> torch.Tensor:
    """Held-out text."""
    return Texts(stdlib_model, CALIBRATION, ()).evaluation_windows(4, 128, 1024)


@pytest.mark.proof
@pytest.mark.parametrize("scheme", SCHEMES)
def test_transformers_loads_it_and_computes_what_we_simulated(
    scheme: str, quantized: Make, stdlib_model: Path, text_BT: torch.Tensor
) -> None:
    """No key missing, none unexpected; the same logits, bit for bit, once its weights are unpacked in float32."""
    checkpoint, export = quantized(scheme, **({} if scheme in BY_DEFAULT else SEARCHED))
    model, info = AutoModelForCausalLM.from_pretrained(export, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    simulated = simulated_logits(checkpoint, text_BT)
    with torch.no_grad():
        in_bfloat16 = model(text_BT).logits.float()
        decoder = CompressedDecoder(export)
        torch.nn.Module.float(model)
        for name in Simulation(checkpoint).description.modules:
            model.get_submodule(name).weight = torch.nn.Parameter(decoder.weight(name))
        in_float32 = model(text_BT).logits
        source = AutoModelForCausalLM.from_pretrained(stdlib_model, dtype=torch.float32)(text_BT).logits
    assert torch.equal(in_float32, simulated)
    # As it loads it computes in bfloat16, and divides activations by their scales in it too, which costs about as much
    # again as the format itself. A serving engine divides in float32.
    noise, error = (((logits - simulated).norm() / simulated.norm()).item() for logits in (in_bfloat16, source))
    print(f"{scheme}: float32 logits equal; bfloat16 noise {noise:.4f}, quantization error {error:.4f}")
    assert noise < max(error * (1.3 if PRESETS[scheme].activations else 0.3), BF16_NOISE)


@pytest.mark.proof
@pytest.mark.parametrize("scheme", ["fp8", "fp8_dynamic", "int8", "int4", "nvfp4", "nvfp4_w4a16"])
def test_every_byte_is_what_compressed_tensors_writes(scheme: str, quantized: Make, stdlib_model: Path) -> None:
    """Its own compressor, fed our max-calibrated scales and the model's weights in float32."""
    export = quantized(scheme, **PLAIN).export
    written, source = TensorReader(export), TensorReader(stdlib_model)
    config = QuantizationConfig.model_validate(json.loads((export / "config.json").read_text())["quantization_config"])
    oracle = BaseCompressor.get_value_from_registry(config.format)
    modules = [name.removesuffix(".weight_scale") for name in written.names if name.endswith(".weight_scale")]
    for module in modules:
        state = {"weight": source.tensor(f"{module}.weight").float()}
        for scale in ("weight_scale", "weight_global_scale"):
            if f"{module}.{scale}" in written:
                state[scale] = written.tensor(f"{module}.{scale}").float()
        for name, tensor in oracle.compress(state, config.config_groups["group_0"]).items():
            ours = written.tensor(f"{module}.{name}")
            if name == "weight_scale":  # given in float32, stored by us in the type that engines read
                assert torch.equal(ours.float(), tensor.float()), module
                continue
            assert ours.dtype == tensor.dtype, (module, name)
            assert torch.equal(ours.view(torch.uint8), tensor.contiguous().view(torch.uint8)), (module, name)
    print(f"{scheme}: {len(modules)} layers byte for byte")
    assert len(modules) == 42


@pytest.mark.proof
@pytest.mark.parametrize("scheme", ["int4", "nvfp4", "nvfp4_w4a16"])
def test_scale_search_lowers_kl(scheme: str, quantized: Make, stdlib_model: Path, tmp_path: Path) -> None:
    """The table of the report: the same format, rounded to nearest by max scales and by searched ones."""
    kl = _measure(quantized(scheme, **SEARCHED), stdlib_model, tmp_path / "measured")["mean_kl"]
    print(f"{scheme}: KL {kl.baseline:.5f} by max, {kl.result:.5f} by search, ratio {kl.result / kl.baseline:.3f}")
    assert 0 < kl.result < kl.baseline


def test_the_baseline_is_what_max_scales_give(quantized: Make, stdlib_model: Path, tmp_path: Path) -> None:
    """The report's `max scales` column is a real quantization: quantizing with `max` gives its figure."""
    searched = _measure(quantized("int4"), stdlib_model, tmp_path / "searched")["mean_kl"]
    by_max = _measure(quantized("int4", **PLAIN), stdlib_model, tmp_path / "plain")["mean_kl"]
    assert by_max.baseline is None
    assert searched.baseline == pytest.approx(by_max.result, rel=1e-6)


@pytest.mark.parametrize("scheme", ["fp8", "nvfp4"])
def test_fused_layers_share_their_scales_on_disk(scheme: str, quantized: Make) -> None:
    reader = TensorReader(quantized(scheme).export)
    kind = "weight_scale" if scheme == "fp8" else "weight_global_scale"
    input_kind = "input_scale" if scheme == "fp8" else "input_global_scale"
    for siblings in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
        for tensor in (kind, input_kind):
            values = {reader.tensor(f"model.layers.3.{name}.{tensor}").item() for name in siblings}
            assert len(values) == 1, (siblings, tensor)
    alone = [reader.tensor(f"model.layers.{i}.self_attn.q_proj.{kind}").item() for i in range(6)]
    assert len(set(alone)) > 1


def test_ignored_layers_stay_as_they_are(stdlib_model: Path, tmp_path: Path) -> None:
    technique = Ptq(scheme="int8", ignore=("re:.*down_proj", "model.layers.0.self_attn.o_proj"))
    export = TensorReader(_quantize(technique, stdlib_model, tmp_path).export)
    source = TensorReader(stdlib_model)
    for name in ("model.layers.5.mlp.down_proj.weight", "model.layers.0.self_attn.o_proj.weight"):
        assert torch.equal(export.tensor(name), source.tensor(name))
        assert f"{name}_scale" not in export
    assert export.tensor("model.layers.1.self_attn.o_proj.weight").dtype == torch.int8


@pytest.mark.parametrize("family", ["Phi3", "Mixtral", "Qwen3"])
def test_kv_scales_lie_where_engines_look(family: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    export = TensorReader(_quantize(plain("int8", kv_cache="fp8"), tiny_model(family), tmp_path).export)
    for layer in range(2):
        for kind in ("k_scale", "v_scale"):
            assert export.tensor(f"model.layers.{layer}.self_attn.{kind}").item() > 0


def test_a_part_of_a_fused_group_cannot_be_ignored(stdlib_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="fuse into one matrix"):
        _quantize(Ptq(scheme="int8", ignore=("re:.*q_proj",)), stdlib_model, tmp_path)


def test_a_linked_licence_is_not_taken_along(stdlib_model: Path, tmp_path: Path) -> None:
    """It could lead to any file of this machine, and the artifact is published."""
    model = shutil.copytree(stdlib_model, tmp_path / "model")
    (model / "LICENSE").symlink_to("/etc/passwd")
    (model / "tokenizer.notes").symlink_to("/etc/passwd")
    (model / "NOTICE").write_text("a notice")
    export = _quantize(plain("int8"), model, tmp_path / "made").export
    names = {path.name for path in export.iterdir()}
    assert "NOTICE" in names
    assert not names & {"LICENSE", "tokenizer.notes"}


def test_a_small_text_serves_calibration_and_evaluation(stdlib_model: Path, tmp_path: Path) -> None:
    """However many samples are asked for, a quarter of a data set without splits stays for the evaluation."""
    file = tmp_path / "text.txt"
    file.write_text("def f(x):\n    return x + 1\n\n" * 4000)
    texts = Texts(stdlib_model, Calibration(path=str(file)), (file,))
    used, held_out = texts.calibration_windows(128), texts.evaluation_windows(1000, 128, 1024)
    assert len(held_out) > 10
    assert abs(len(used) / len(held_out) - 3) < 0.7


def test_routers_and_the_head_are_named_as_ignored(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Engines whose router is a linear layer would look for its scales otherwise. transformers calls it `mlp.gate`."""
    export = _quantize(plain("int8"), tiny_model("Mixtral"), tmp_path).export
    ignored = json.loads((export / "config.json").read_text())["quantization_config"]["ignore"]
    routers = {f"model.layers.{index}.{block}.gate" for index in range(2) for block in ("block_sparse_moe", "mlp")}
    assert set(ignored) == {"lm_head"} | routers


def _quantize(technique: Ptq, model: Path, folder: Path) -> Quantized:
    made = Quantized(folder / "checkpoint", folder / "export")
    technique.apply(run_of(model, model, made.checkpoint, calibration=CALIBRATION))
    CompressedTensors().write(run_of(model, made.checkpoint, made.export, calibration=CALIBRATION))
    return made


def _measure(made: Quantized, model: Path, out: Path) -> dict[str, Measurement]:
    run = run_of(model, made.checkpoint, out, calibration=CALIBRATION)
    return {row.name: row for row in Fidelity(samples=8, sequence_length=256).measure(run)}
