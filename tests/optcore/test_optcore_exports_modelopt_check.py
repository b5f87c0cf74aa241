"""What TensorRT-LLM's loader asserts: every clean export passes, and every planted violation is named."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import Quantize, export, plain, run_of
from fixtures.tiny_models import MakeModel
from safetensors.torch import load_file, save_file

from optcore.errors import ExportMismatch
from optcore.export import Modelopt
from optcore.export.modelopt_check import check_modelopt
from optcore.export.modelopt_config import ALGORITHMS
from optcore.export.modelopt_groups import experts_of, fused_group

ATTENTION, MLP = "model.layers.2.self_attn", "model.layers.2.mlp"
BLOCK = "model.layers.0.mlp.experts"
Tensors = dict[str, torch.Tensor]
Plant = Callable[[Tensors], object]
Describe = Callable[[dict[str, Any], dict[str, Any]], object]
Written = Callable[..., Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, quantized: Quantize, stdlib_model: Path) -> Written:
    """`written("fp8")` is a folder of the shipped model in the layout, to be copied; it has passed the check."""
    made: dict[str, Path] = {}

    def make(scheme: str, **more: object) -> Path:
        key = f"{scheme} {sorted(more.items())}"
        if key not in made:
            out = tmp_path_factory.mktemp("written") / "out"
            export(Modelopt(), quantized(scheme, **more), out, stdlib_model)
            made[key] = out
        return made[key]

    return make


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, tiny_model: MakeModel) -> Path:
    """A mixture of experts in NVFP4 with attention in FP8."""
    model, folder = tiny_model("Qwen3Moe"), tmp_path_factory.mktemp("experts")
    overrides = [{"modules": "re:.*self_attn.*", "scheme": "fp8"}]
    plain("nvfp4", overrides=overrides).apply(run_of(model, model, folder / "checkpoint"))
    export(Modelopt(), folder / "checkpoint", folder / "out", model)
    return folder / "out"


def planted(source: Path, folder: Path, plant: Plant) -> list[str]:
    """What is said of a copy with other tensors."""
    shutil.copytree(source, folder)
    tensors = {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}
    for path in folder.glob("*.safetensors"):
        path.unlink()
    plant(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return check_modelopt(folder)


def described(source: Path, folder: Path, describe: Describe) -> list[str]:
    """What is said of a copy with other descriptions: `hf_quant_config.json` and the copy in `config.json`."""
    shutil.copytree(source, folder)
    config, nested = (json.loads((folder / name).read_text()) for name in ("config.json", "hf_quant_config.json"))
    describe(nested["quantization"], config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "hf_quant_config.json").write_text(json.dumps(nested))
    return check_modelopt(folder)


@pytest.mark.parametrize("scheme", sorted(Modelopt.schemes))
def test_every_scheme_passes(scheme: str, written: Written) -> None:
    assert check_modelopt(written(scheme)) == []


@pytest.mark.parametrize("kv_cache", sorted(Modelopt.kv_caches))
def test_every_cache_passes(kv_cache: str, written: Written) -> None:
    assert check_modelopt(written("fp8", kv_cache=kv_cache)) == []


def test_experts_pass(experts: Path) -> None:
    assert check_modelopt(experts) == []


def test_experts_keep_their_input_scales(tiny_model: MakeModel, tmp_path: Path) -> None:
    """The fused kernel of W4A8 asks every expert for `pre_quant_scale`; the attention's fused layers have none."""
    model = tiny_model("Qwen3Moe")
    plain("int4_fp8_static").apply(run_of(model, model, tmp_path / "checkpoint"))
    files = export(Modelopt(), tmp_path / "checkpoint", tmp_path / "out", model)
    having = {name.rpartition(".")[0] for name in files.names if name.endswith("pre_quant_scale")}
    assert "model.layers.0.mlp.experts.1.gate_proj" in having
    assert "model.layers.0.self_attn.o_proj" in having
    assert "model.layers.0.self_attn.q_proj" not in having


def test_names_of_groups() -> None:
    known = {"a.q_proj", "a.k_proj", "m.gate_proj", "m.up_proj", "m.down_proj"}
    assert fused_group("a.k_proj", known) == ("a.q_proj", "a.k_proj")
    assert fused_group("m.up_proj", known) == ("m.gate_proj", "m.up_proj")
    assert fused_group("m.down_proj", known) == ("m.down_proj",)
    assert experts_of("model.layers.0.mlp.experts.12.up_proj") == "model.layers.0.mlp.experts"
    assert experts_of("model.layers.0.mlp.up_proj") == ""


def scaled(name: str, factor: float) -> Plant:
    return lambda tensors: tensors.update({name: (tensors[name].float() * factor).to(tensors[name].dtype)})


def cast(name: str, dtype: torch.dtype) -> Plant:
    return lambda tensors: tensors.update({name: tensors[name].to(dtype)})


def shaped(name: str, *shape: int) -> Plant:
    return lambda tensors: tensors.update({name: tensors[name].reshape(shape)})


def added(name: str, tensor: torch.Tensor) -> Plant:
    return lambda tensors: tensors.update({name: tensor})


def dropped(name: str) -> Plant:
    return lambda tensors: tensors.pop(name)


ONES = torch.ones(256, dtype=torch.bfloat16)
TENSORS: list[tuple[str, Plant, str]] = [
    ("nvfp4", scaled(f"{ATTENTION}.k_proj.weight_scale_2", 1.5), "k_proj.weight_scale_2, .* are not the same"),
    ("nvfp4", scaled(f"{MLP}.up_proj.input_scale", 1.5), "up_proj.input_scale are not the same"),
    ("nvfp4_w4a16", scaled(f"{ATTENTION}.v_proj.weight_scale_2", 2.0), "v_proj.weight_scale_2 are not the same"),
    ("int4_fp8_static", scaled(f"{MLP}.gate_proj.weight_scale_2", 2.0), "up_proj.weight_scale_2 are not the same"),
    ("int4_fp8_static", scaled(f"{ATTENTION}.q_proj.input_scale", 2.0), "q_proj.input_scale, .* are not the same"),
    ("fp8", dropped(f"{MLP}.down_proj.weight_scale"), "down_proj.weight_scale is missing, and FP8 reads it"),
    ("fp8", dropped(f"{MLP}.down_proj.input_scale"), "down_proj.input_scale is missing"),
    ("nvfp4", dropped(f"{MLP}.down_proj.weight_scale_2"), "down_proj.weight_scale_2 is missing"),
    ("int4", dropped(f"{ATTENTION}.o_proj.pre_quant_scale"), "o_proj.pre_quant_scale is missing, and W4A16_AWQ"),
    ("int4", added(f"{ATTENTION}.q_proj.pre_quant_scale", ONES), "q_proj.pre_quant_scale is not read by W4A16_AWQ"),
    ("int4", cast(f"{ATTENTION}.o_proj.pre_quant_scale", torch.float32), "pre_quant_scale is F32, .* as BF16"),
    ("fp8", cast(f"{MLP}.up_proj.weight_scale", torch.bfloat16), "up_proj.weight_scale is BF16, .* as F32"),
    ("nvfp4", cast(f"{MLP}.up_proj.weight_scale", torch.float32), "up_proj.weight_scale is F32, .* as F8_E4M3"),
    ("fp8", cast(f"{MLP}.up_proj.weight", torch.bfloat16), "up_proj.weight is BF16, .* as F8_E4M3"),
    ("fp8", shaped(f"{MLP}.up_proj.weight_scale", 1), r"up_proj.weight_scale has the shape \(1,\), .* reads \(\)"),
    ("fp8_dynamic", shaped(f"{MLP}.up_proj.weight_scale", 768, 1), r"\(768, 1\), .* reads \(768,\)"),
    ("fp8_block", shaped(f"{MLP}.up_proj.weight_scale", 6, 2), r"\(6, 2\), and fp8_pb_wo reads \(6, 1, 2, 1\)"),
    ("nvfp4", shaped(f"{MLP}.up_proj.weight_scale", 16, 768), r"\(16, 768\), and NVFP4 reads \(768, 16\)"),
    ("int4", shaped(f"{MLP}.up_proj.weight", 256, 384), "up_proj.weight_scale has the shape|groups of 128 do not"),
    ("int4", shaped(f"{MLP}.up_proj.weight", 1536, 64), "3072 x 64, which groups of 128 do not divide"),
    ("fp8_block", shaped(f"{MLP}.up_proj.weight", 3072, 64), "3072 x 64, which groups of 128 do not divide"),
    ("fp8", scaled(f"{MLP}.up_proj.weight_scale", 0.0), "up_proj.weight_scale holds 0, and a scale is finite"),
    ("fp8", scaled(f"{MLP}.up_proj.weight_scale", float("nan")), "up_proj.weight_scale holds nan"),
    ("fp8", scaled(f"{MLP}.up_proj.input_scale", float("inf")), "up_proj.input_scale holds inf"),
    ("fp8", scaled(f"{MLP}.up_proj.input_scale", -1.0), "up_proj.input_scale holds -.* above zero"),
    ("nvfp4", scaled(f"{MLP}.up_proj.weight_scale", -1.0), "up_proj.weight_scale holds -.* above zero"),
    ("int4", scaled(f"{MLP}.up_proj.weight_scale", 0.0), "up_proj.weight_scale holds 0, .* not zero"),
    ("fp8", dropped(f"{MLP}.up_proj.weight"), "up_proj.weight_scale is the scale of a weight that is not there"),
    ("nvfp4_w4a16", added(f"{MLP}.up_proj.input_scale", torch.tensor(1.0)), "input_scale is not read by W4A16_NVFP4"),
]


@pytest.mark.parametrize(("scheme", "plant", "said"), TENSORS)
def test_planted_tensors_are_named(scheme: str, plant: Plant, said: str, written: Written, tmp_path: Path) -> None:
    found = planted(written(scheme), tmp_path / "copy", plant)
    assert any(_has(said, sentence) for sentence in found), found


def _has(pattern: str, sentence: str) -> bool:
    return re.search(pattern, sentence) is not None


CACHE: list[tuple[str, Plant, str]] = [
    ("fp8", dropped(f"{ATTENTION}.v_proj.v_scale"), "self_attn has .*k_scale and no v_scale; they are loaded together"),
    ("nvfp4", dropped(f"{ATTENTION}.k_proj.k_scale"), "self_attn has .*v_scale and no k_scale"),
    ("fp8", scaled(f"{ATTENTION}.k_proj.k_scale", 0.0), "k_proj.k_scale holds 0"),
    ("fp8", shaped(f"{ATTENTION}.k_proj.k_scale", 1), r"k_scale is F32 \(1,\), and a float32 number is read"),
    ("fp8", cast(f"{ATTENTION}.k_proj.k_scale", torch.bfloat16), "k_scale is BF16"),
    ("nvfp4_affine", dropped(f"{ATTENTION}.v_proj.v_bias"), "k_bias and no v_bias"),
    ("nvfp4_affine", shaped(f"{ATTENTION}.k_proj.k_bias", 128), r"k_bias has the shape \(128,\)"),
    ("fp8", added(f"{ATTENTION}.k_proj.k_bias", torch.zeros(1, 2, 1, 64)), "k_bias: a KV cache in FP8 has none"),
]


@pytest.mark.parametrize(("kv_cache", "plant", "said"), CACHE)
def test_planted_cache_scales_are_named(
    kv_cache: str, plant: Plant, said: str, written: Written, tmp_path: Path
) -> None:
    found = planted(written("fp8", kv_cache=kv_cache), tmp_path / "copy", plant)
    assert any(_has(said, sentence) for sentence in found), found


def test_a_cache_that_nothing_describes_or_scales(written: Written, tmp_path: Path) -> None:
    source = written("fp8", kv_cache="fp8")

    def undescribed(nested: dict[str, Any], flat: dict[str, Any]) -> None:
        nested["kv_cache_quant_algo"] = None
        del flat["kv_cache_scheme"]

    assert "a KV cache in None has none" in described(source, tmp_path / "one", undescribed)[0]

    def all_dropped(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith(("k_scale", "v_scale"))]:
            del tensors[name]

    (said,) = planted(source, tmp_path / "two", all_dropped)
    assert said == "`kv_cache_quant_algo` is FP8, and no layer has a k_scale"


DESCRIPTIONS: list[tuple[str, Describe, str]] = [
    ("fp8", lambda n, f: n.update(quant_algo="INT8"), "`quant_algo` is 'INT8', and the loader knows FP8"),
    ("fp8", lambda n, f: n.update(quant_algo="fp8"), "`quant_algo` is 'fp8', and the loader knows FP8"),
    ("fp8_block", lambda n, f: n.update(quant_algo="FP8_PB_WO"), "'FP8_PB_WO', and the loader knows"),
    ("fp8", lambda n, f: f.update(quant_algo="NVFP4"), "`quant_algo` is 'FP8' in hf_quant_config.json, and 'NVFP4'"),
    ("fp8", lambda n, f: f.update(quant_method="fp8"), "`quant_method` in config.json is not `modelopt`"),
    ("fp8", lambda n, f: n.update(exclude_modules=[]), "`exclude_modules` is .* in hf_quant_config.json"),
    ("nvfp4", lambda n, f: n.update(group_size=32), "`group_size` of `quant_algo` is 32, and NVFP4 has 16"),
    ("int4", lambda n, f: n.update(has_zero_point=True), "has_zero_point"),
    ("int4", lambda n, f: n.pop("pre_quant_scale"), "pre_quant_scale"),
    ("fp8", lambda n, f: n.update(kv_cache_quant_algo="INT4"), "`kv_cache_quant_algo` is 'INT4', and the loader knows"),
    ("fp8", lambda n, f: n.update(kv_cache_quant_algo="FP8"), "'FP8' in hf_quant_config.json, and None in config.json"),
    ("fp8", lambda n, f: n["exclude_modules"].append(f"{MLP}.*"), "down_proj is quantized, and `exclude_modules` says"),
    ("fp8", lambda n, f: n["exclude_modules"].append("re:.*o_proj"), "o_proj is quantized, and `exclude_modules` says"),
    ("fp8", lambda n, f: n.update(quant_algo="MIXED_PRECISION"), "`quantized_layers` is empty"),
]


@pytest.mark.parametrize(("scheme", "describe", "said"), DESCRIPTIONS)
def test_planted_descriptions_are_named(
    scheme: str, describe: Describe, said: str, written: Written, tmp_path: Path
) -> None:
    found = described(written(scheme), tmp_path / "copy", describe)
    assert any(_has(said, sentence) for sentence in found), found


def test_a_producer_that_is_not_the_tool(written: Written, tmp_path: Path) -> None:
    shutil.copytree(written("fp8"), tmp_path / "copy")
    path = tmp_path / "copy" / "hf_quant_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"producer": {"name": "other"}}))
    assert "`producer.name`" in check_modelopt(tmp_path / "copy")[0]


def _both(change: Callable[[dict[str, Any]], object]) -> Describe:
    """The same change in both descriptions."""
    return lambda nested, flat: [change(nested), change(flat)]


EXPERTS: list[tuple[Describe, str]] = [
    (
        _both(lambda d: d["quantized_layers"].pop("model.layers.0.self_attn.k_proj")),
        "k_proj is quantized, and `quantized_layers` does not list it",
    ),
    (
        _both(lambda d: d["quantized_layers"].update({"model.layers.0.mlp.gate": {"quant_algo": "FP8"}})),
        "mlp.gate is listed in `quantized_layers`, and is not quantized",
    ),
    (
        _both(
            lambda d: d["quantized_layers"].update(
                {"model.layers.0.self_attn.k_proj": {"quant_algo": "NVFP4", "group_size": 16}}
            )
        ),
        "q_proj, .*k_proj, .*v_proj run as one matrix, and have several formats",
    ),
    (
        _both(
            lambda d: d["quantized_layers"].update({"model.layers.0.mlp.experts.0.down_proj": {"quant_algo": "FP8"}})
        ),
        "mlp.experts has experts in several formats",
    ),
    (
        _both(lambda d: d.get("ignore", d.get("exclude_modules")).remove("model.layers.0.mlp.gate")),
        "mlp.gate is not quantized, and `exclude_modules` does not list it",
    ),
]


@pytest.mark.parametrize(("describe", "said"), EXPERTS)
def test_planted_mixtures_are_named(describe: Describe, said: str, experts: Path, tmp_path: Path) -> None:
    found = described(experts, tmp_path / "copy", describe)
    assert any(_has(said, sentence) for sentence in found), found


def test_experts_share_scales_of_gate_and_up(experts: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.2.up_proj.weight_scale_2"
    (said,) = planted(experts, tmp_path / "copy", scaled(name, 2.0))
    assert said.startswith(f"{name.replace('up', 'gate')}, {name} are not the same")


def test_a_layer_of_a_fused_group_that_is_left_alone(written: Written, tmp_path: Path) -> None:
    def left(tensors: Tensors) -> None:
        for suffix in ("weight_scale", "input_scale"):
            del tensors[f"{ATTENTION}.q_proj.{suffix}"]
        tensors[f"{ATTENTION}.q_proj.weight"] = tensors[f"{ATTENTION}.q_proj.weight"].to(torch.bfloat16)

    found = planted(written("fp8"), tmp_path / "copy", left)
    assert f"{ATTENTION}.q_proj is not quantized, and `exclude_modules` does not list it" in found
    assert any(_has("q_proj, .* run as one matrix, and have several formats", sentence) for sentence in found)


def test_thousands_of_layers_are_one_walk(tmp_path: Path) -> None:
    """A model of many experts; sets of all names, made anew for every one of them, took minutes."""
    names = [f"layers.{layer}.{leaf}" for layer in range(4000) for leaf in ("gate_proj", "up_proj")]
    weight, scale = torch.zeros(1, 1, dtype=torch.float8_e4m3fn), torch.ones(())
    tensors = {f"{name}.weight": weight.clone() for name in names}
    tensors |= {f"{name}.{kind}": scale.clone() for name in names for kind in ("weight_scale", "input_scale")}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}})
    )
    nested = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(nested))
    before = time.process_time()
    assert check_modelopt(tmp_path) == []
    assert time.process_time() - before < 10


def test_the_writer_raises(
    quantized: Quantize, stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A description that is wrong does not leave it."""
    monkeypatch.setitem(ALGORITHMS, "int4", {"quant_algo": "W4A16_AWQ", "group_size": 64})
    with pytest.raises(ExportMismatch, match=r"TensorRT-LLM would not load .* `group_size` of `quant_algo` is 64"):
        export(Modelopt(), quantized("int4"), tmp_path / "out", stdlib_model)
