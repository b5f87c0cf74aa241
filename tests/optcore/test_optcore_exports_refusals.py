"""What GGUF, ONNX and Model Optimizer's layout have no place for: refused before any work, with the reason and a way
out that works."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures.classifiers import MakeClassifier
from fixtures.tiny_models import MakeModel

from optcore.engines import Family
from optcore.errors import RecipeError
from optcore.plan import check
from optcore.recipe import Recipe, recipe_from
from optcore.report import Task
from optcore.targets import check_exports, check_target

WINDOW = {"technique": "attention_window", "window": 64}
WAYS_OUT = r"format: ([\w-]+)\}`, which ([\w.-]+) loads"


def ptq(scheme: str, **more: Any) -> dict[str, Any]:
    return {"technique": "ptq", "scheme": scheme, **more}


def recipe(target: str, *chain: dict[str, Any], engine: str | None = None) -> Recipe:
    return recipe_from({"model": {"path": "m"}, "chain": chain, "target": {"format": target, "engine": engine}})


def of(refusal: pytest.ExceptionInfo[RecipeError]) -> tuple[str, str, str]:
    error = refusal.value
    return error.message, error.remedy, error.field


@pytest.mark.parametrize(
    ("target", "entry", "message"),
    [
        ("gguf", ptq("fp8"), "GGUF cannot hold fp8"),
        ("gguf", ptq("int8"), "GGUF cannot hold int8"),
        ("gguf", ptq("nvfp4"), "GGUF cannot hold nvfp4"),
        ("gguf", ptq("int4", kv_cache="fp8"), "GGUF cannot hold a KV cache in fp8"),
        ("onnx", ptq("fp8_dynamic"), "ONNX cannot hold fp8_dynamic"),
        ("onnx", ptq("q4_k"), "ONNX cannot hold q4_k"),
        ("onnx", ptq("int4", kv_cache="int4"), "ONNX cannot hold a KV cache in int4"),
        ("modelopt", ptq("int8"), "Model Optimizer cannot hold int8"),
        ("modelopt", ptq("int4_asym"), "Model Optimizer cannot hold int4_asym"),
        ("modelopt", ptq("q8_0"), "Model Optimizer cannot hold q8_0"),
        ("modelopt", ptq("fp8", kv_cache="int4"), "Model Optimizer cannot hold a KV cache in int4"),
        (
            "modelopt",
            ptq("int4", overrides=[{"modules": "a", "scheme": "int3"}]),
            "Model Optimizer cannot hold int3",
        ),
    ],
)
def test_formats_that_a_target_cannot_hold(target: str, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        check(recipe(target, entry))
    said, remedy, field = of(refusal)
    assert said.startswith(message)
    assert field.startswith("/chain/0/")
    _works(entry, remedy)


@pytest.mark.parametrize(
    ("target", "engine", "entry", "message"),
    [
        ("gguf", "vllm", ptq("q4_k"), r"vLLM [\d.]+ does not load anything from GGUF"),
        ("gguf", "onnxruntime-genai", ptq("int4"), r"ONNX Runtime GenAI [\d.]+ does not load anything from GGUF"),
        ("onnx", "llama.cpp", ptq("int4"), r"llama.cpp of .* does not load anything from ONNX"),
        ("onnx", "onnxruntime", ptq("int4"), r"ONNX Runtime [\d.]+ does not load int4 from ONNX"),
        ("modelopt", "vllm", ptq("int4"), r"vLLM [\d.]+ does not load int4 \(W4A16_AWQ and .* from Model Optimizer"),
        ("modelopt", "sglang", ptq("fp8_block"), r"SGLang [\d.]+ does not load fp8_block \(reads per-tensor FP8\)"),
        ("modelopt", "vllm", ptq("nvfp4", kv_cache="nvfp4"), r"vLLM .* a KV cache in nvfp4 \(reads FP8 KV scales only"),
        ("modelopt", "transformers", ptq("fp8"), r"transformers [\d.]+ does not load fp8 \(loads silently wrong"),
    ],
)
def test_engines_that_do_not_load_it(target: str, engine: str, entry: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        check(recipe(target, entry, engine=engine))
    said, remedy, field = of(refusal)
    assert re.match(message, said), said
    assert field == "/target/engine"
    _works(entry, remedy)


@pytest.mark.parametrize(
    ("target", "family", "scheme", "message"),
    [
        ("onnx", "moe", "int4", "no known engine loads int4 from ONNX"),
        ("onnx", "fused_moe", "int8_w8a16", "no known engine loads int8_w8a16 from ONNX"),
        ("modelopt", "moe", "int4", ""),
        ("gguf", "moe", "q4_k", ""),
    ],
)
def test_mixtures_of_experts(target: str, family: Family, scheme: str, message: str) -> None:
    asked = recipe(target, ptq(scheme))
    if not message:
        check_target(asked, family)
        return
    with pytest.raises(RecipeError) as refusal:
        check_target(asked, family)
    said, remedy, field = of(refusal)
    assert (said, field) == (message, "/target/format")
    _works(ptq(scheme), remedy, family)


@pytest.mark.parametrize("target", ["gguf", "onnx"])
@pytest.mark.parametrize(
    "entry", [WINDOW, {"technique": "activation_sparsity"}, {"technique": "early_exit", "steps": 0}]
)
def test_conditions_under_which_a_model_is_run(target: str, entry: dict[str, Any]) -> None:
    check(recipe("dense", entry))
    with pytest.raises(RecipeError, match=r"says in conditional\.json how the model is to be run") as refusal:
        check(recipe(target, entry))
    said, remedy, field = of(refusal)
    assert ("llama.cpp" if target == "gguf" else "ONNX Runtime") in said
    assert remedy == f"leave `{entry['technique']}` out, or use `target: {{format: dense}}`, which keeps the file"
    assert field == "/target/format"


def test_a_window_alone_may_stand_in_the_configuration() -> None:
    check(recipe("gguf", WINDOW | {"sinks": 0}))


def test_further_targets_are_asked_too() -> None:
    document = recipe("dense", WINDOW).model_dump(mode="json") | {"also": [{"format": "gguf"}]}
    with pytest.raises(RecipeError, match="which GGUF has no place for") as refusal:
        check(recipe_from(document))
    assert refusal.value.field == "/also/0/format"


def test_nothing_quantized_has_no_place_in_a_quantized_layout() -> None:
    with pytest.raises(RecipeError, match="nothing in the chain quantizes, and Model Optimizer holds") as refusal:
        check(recipe("modelopt", {"technique": "rotate"}))
    assert "`target: {format: dense}`" in refusal.value.remedy


@pytest.mark.parametrize(
    ("target", "family", "message"),
    [
        ("gguf", "DeepseekV3", "DeepseekV3ForCausalLM is not written as GGUF"),
        ("gguf", "Olmo", "OlmoForCausalLM is not written as GGUF"),
        ("onnx", "Olmo", "ONNX Runtime GenAI's builder cannot write OlmoForCausalLM: logits came out 10 % off"),
        ("onnx", "Mixtral", "ONNX Runtime GenAI's builder cannot write MixtralForCausalLM: it knows Llama"),
        ("onnx", "Mistral", "every layer sees a window of 16 of 512 tokens, which it leaves out"),
    ],
)
def test_families_that_an_engine_would_compute_otherwise(
    target: str, family: str, message: str, tiny_model: MakeModel
) -> None:
    with pytest.raises(RecipeError) as refusal:
        check_exports(recipe(target, ptq("int4")), tiny_model(family), "text-generation")
    said, remedy, field = of(refusal)
    assert message in said
    assert "compressed-tensors" in remedy
    assert field == "/target/format"


@pytest.mark.parametrize(
    ("target", "task", "scheme", "message", "way_out"),
    [
        ("gguf", "text-classification", "q8_0", "GGUF is written for models that generate text", "format: onnx"),
        ("gguf", "fill-mask", "int4", "GGUF is written for models that generate text", "format: onnx"),
        ("onnx", "text-classification", "int4", "ONNX cannot hold int4 of an encoder", "int8, int8_static"),
    ],
)
def test_tasks(
    target: str, task: Task, scheme: str, message: str, way_out: str, tiny_classifier: MakeClassifier
) -> None:
    with pytest.raises(RecipeError) as refusal:
        check_exports(recipe(target, ptq(scheme)), tiny_classifier("Bert"), task)
    said, remedy, _ = of(refusal)
    assert said.startswith(message)
    assert way_out in remedy


@pytest.mark.parametrize(("target", "engine"), [("gguf", "llama.cpp"), ("onnx", "ONNX Runtime")])
def test_a_source_that_is_to_be_run_under_conditions(
    target: str, engine: str, stdlib_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(stdlib_model, tmp_path / "model")
    (tmp_path / "model" / "conditional.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(RecipeError, match=rf"as conditional\.json says, and {engine} would run all of it") as refusal:
        check_exports(recipe(target, ptq("int4")), tmp_path / "model", "text-generation")
    assert "format: dense" in refusal.value.remedy


def _works(entry: dict[str, Any], remedy: str, family: Family | None = None) -> None:
    """A remedy that names a target is followed, and passes; any other says what to change in the entry."""
    if found := re.search(WAYS_OUT, remedy):
        check_target(recipe(found[1], entry, engine=found[2]), family)
    else:
        assert re.search("leave `kv_cache` out|choose one number format", remedy), remedy
