"""Model Optimizer's layout: numbers against its published formulas, both descriptions alike."""

import json
from pathlib import Path

import numpy as np
import pytest
from fixtures.exporting import Quantize, export, plain, run_of
from fixtures.tiny_models import MakeModel
from safetensors.torch import load_file

from optcore.errors import RecipeError
from optcore.export import Modelopt
from optcore.export.layout_writer import EXACT
from optcore.export.modelopt_decoder import ModeloptDecoder
from optcore.export.modelopt_writer import ModeloptLayout
from optcore.streaming.quantized import QuantizedCheckpoint

NAME = "model.layers.2.mlp.down_proj"
SHAPES = {  # of a weight of 256 outputs and 768 inputs
    "fp8": {"weight": (256, 768), "weight_scale": (), "input_scale": ()},
    "fp8_dynamic": {"weight": (256, 768), "weight_scale": (256,)},
    "fp8_block": {"weight": (256, 768), "weight_scale": (2, 1, 6, 1)},
    "nvfp4": {"weight": (256, 384), "weight_scale": (256, 48), "weight_scale_2": (), "input_scale": ()},
    "nvfp4_w4a16": {"weight": (256, 384), "weight_scale": (256, 48), "weight_scale_2": ()},
    "int4": {"weight": (128, 768), "weight_scale": (256, 6), "pre_quant_scale": (768,)},
    "int4_fp8_static": {
        "weight": (128, 768),
        "weight_scale": (256, 6),
        "pre_quant_scale": (768,),
        "weight_scale_2": (),
        "input_scale": (),
    },
}


@pytest.mark.proof
@pytest.mark.parametrize("scheme", sorted(Modelopt.schemes))
def test_what_is_written_decodes_to_what_was_simulated(
    scheme: str, quantized: Quantize, stdlib_model: Path, tmp_path: Path
) -> None:
    checkpoint = quantized(scheme)
    files = export(Modelopt(), checkpoint, tmp_path / "out", stdlib_model)
    state = QuantizedCheckpoint(checkpoint)
    decoder, layout, worst = ModeloptDecoder(files), ModeloptLayout(state), 0.0
    for name in state.description.modules:
        expected = state.weight(name).numpy()
        worst = max(worst, float(np.abs(decoder.weight(name) - expected).max() / np.abs(expected).max()))
        assert layout.bound(name) != EXACT or np.array_equal(decoder.weight(name), expected)
    print(f"modelopt, {scheme}: {len(state.description.modules)} layers, largest relative difference {worst:.2g}")
    assert worst < 2.0**-21
    stored = {n.removeprefix(f"{NAME}."): files.shape(n) for n in files.names if n.startswith(f"{NAME}.")}
    assert stored == SHAPES[scheme]


def test_scales_multiply(quantized: Quantize, stdlib_model: Path, tmp_path: Path) -> None:
    """amax / 2688 for NVFP4, rounded once, and the step of a weight is weight_scale * weight_scale_2."""
    files = export(Modelopt(), quantized("nvfp4"), tmp_path / "out", stdlib_model)
    weight = load_file(stdlib_model / "model.safetensors")[f"{NAME}.weight"].float()
    second = files.floats(f"{NAME}.weight_scale_2").item()
    assert second == np.float32(weight.abs().max().item() / 2688)
    blocks = weight.unflatten(1, (-1, 16)).abs().amax(-1) / (6 * second)
    assert np.abs(files.floats(f"{NAME}.weight_scale") / blocks.numpy() - 1).max() < 2.0**-4 + 1e-6
    amax = QuantizedCheckpoint(quantized("nvfp4")).description.linears[NAME].input_amax
    assert files.floats(f"{NAME}.input_scale").item() == np.float32(amax / 2688)


def test_int4_rows_share_octets_in_twos_complement(quantized: Quantize, stdlib_model: Path, tmp_path: Path) -> None:
    files = export(Modelopt(), quantized("int4"), tmp_path / "out", stdlib_model)
    codes, scales = QuantizedCheckpoint(quantized("int4")).codes(NAME)
    octet = int(files.bits(f"{NAME}.weight")[5, 77])
    assert [octet & 15, octet >> 4] == [int(codes[10, 77]) % 16, int(codes[11, 77]) % 16]
    assert np.array_equal(files.floats(f"{NAME}.weight_scale"), scales.scale.float().numpy())
    assert files.dtype(f"{NAME}.pre_quant_scale") == "BF16"
    assert set(files.floats(f"{NAME}.pre_quant_scale").tolist()) == {1.0}


@pytest.mark.parametrize("scheme", ["fp8", "nvfp4", "int4_fp8_static"])
def test_fused_layers_share_what_readers_assert(
    scheme: str, quantized: Quantize, stdlib_model: Path, tmp_path: Path
) -> None:
    files = export(Modelopt(), quantized(scheme), tmp_path / "out", stdlib_model)
    shared = ("weight_scale", "input_scale") if scheme == "fp8" else ("weight_scale_2", "input_scale")
    for layer in range(6):
        for siblings in (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("mlp.gate_proj", "mlp.up_proj"),
        ):
            for suffix in shared:
                assert len({files.floats(f"model.layers.{layer}.{name}.{suffix}").item() for name in siblings}) == 1


@pytest.mark.parametrize("kv_cache", sorted(Modelopt.kv_caches))
def test_kv_scales_lie_below_the_projections(
    kv_cache: str, quantized: Quantize, stdlib_model: Path, tmp_path: Path
) -> None:
    checkpoint = quantized("fp8", kv_cache=kv_cache)
    files = export(Modelopt(), checkpoint, tmp_path / "out", stdlib_model)
    told = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())["quantization"]
    flat = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
    assert told["kv_cache_quant_algo"] == kv_cache.upper()
    assert flat == ({"dynamic": False, "num_bits": 8, "type": "float"} if kv_cache == "fp8" else kv_cache.upper())
    state = QuantizedCheckpoint(checkpoint)
    for attention in state.description.attentions:
        tensors = state.kv_tensors(attention)
        for kind in ("k", "v"):
            place = f"{attention}.{kind}_proj.{kind}"
            if kv_cache == "fp8":
                amax = tensors[f"{kind}_scale"].item() * 448
            else:
                amax = 2688 / tensors[f"{kind}_global_scale"].item()
            assert files.floats(f"{place}_scale").item() == pytest.approx(amax / 448, rel=1e-6)
            assert files.shape(f"{place}_scale") == ()
            assert (f"{place}_bias" in files.names) is (kv_cache == "nvfp4_affine")
            if kv_cache == "nvfp4_affine":
                assert files.shape(f"{place}_bias") == (1, 2, 1, 64)


def test_mixed_precision_names_every_layer(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Both descriptions hold the same facts, fused siblings and experts one by one."""
    model = tiny_model("Qwen3Moe")
    overrides = [{"modules": "re:.*self_attn.*", "scheme": "fp8"}]
    plain("nvfp4", overrides=overrides).apply(run_of(model, model, tmp_path / "checkpoint"))
    files = export(Modelopt(), tmp_path / "checkpoint", tmp_path / "out", model)
    nested = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())
    flat = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert flat["quant_algo"] == nested["quantization"]["quant_algo"] == "MIXED_PRECISION"
    assert flat["quantized_layers"] == nested["quantization"]["quantized_layers"]
    assert flat["ignore"] == nested["quantization"]["exclude_modules"]
    assert flat["ignore"] == ["lm_head", "model.layers.0.mlp.gate", "model.layers.1.mlp.gate"]
    by_algorithm: dict[str, set[str]] = {}
    for name, layer in flat["quantized_layers"].items():
        by_algorithm.setdefault(layer["quant_algo"], set()).add(name)
    assert len(by_algorithm["FP8"]) == 2 * 4
    assert len(by_algorithm["NVFP4"]) == 2 * 4 * 3
    assert {frozenset(group["targets"]) for group in flat["config_groups"].values()} == {
        frozenset(names) for names in by_algorithm.values()
    }
    assert all(f"{name}.input_scale" in files.names for name in flat["quantized_layers"])


def test_partial_blocks_are_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("Llama")  # two key-value heads of 32
    plain("fp8_block").apply(run_of(model, model, tmp_path / "checkpoint"))
    with pytest.raises(RecipeError, match=r"k_proj is 64 x 128, .* whole blocks of 128 x 128 only"):
        export(Modelopt(), tmp_path / "checkpoint", tmp_path / "out", model)
