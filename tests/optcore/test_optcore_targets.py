"""The matrix of engines: whole, consistent with the exports, and asked before any work."""

import json
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from fixtures.classifiers import MakeClassifier
from fixtures.tiny_models import MakeModel

from optcore.engines import ENGINES, KV, MATRIX, MIXED, conditions, loading, obstacles, support
from optcore.errors import RecipeError
from optcore.export import AnyExport, CompressedTensors, Export, Gguf, Onnx
from optcore.frozen import members, tag
from optcore.plan import check
from optcore.recipe import recipe_from
from optcore.schemes import KV_CACHE_PRESETS, PRESETS
from optcore.stage import ExportWork, environment
from optcore.streaming.reader import TensorReader
from optcore.targets import check_exports, check_target, family_of

EXPORTS = {tag(kind): kind for kind in members(AnyExport) if issubclass(kind, Export)}


def recipe(target: dict[str, Any] | None = None, **ptq: Any) -> Any:
    document = {"model": {"path": "m"}, "chain": [{"technique": "ptq", **ptq}]}
    return recipe_from(document | ({"target": target} if target else {}))


def refused(target: dict[str, Any] | None = None, **ptq: Any) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        check(recipe(target, **ptq))
    return caught.value


def test_rows_name_what_there_is() -> None:
    known = {*PRESETS, MIXED, *(f"{KV}{name}" for name in KV_CACHE_PRESETS)}
    assert {name for row in MATRIX for name in row.formats} <= known
    assert {row.target for row in MATRIX} == set(EXPORTS)
    assert {row.engine for row in MATRIX} == set(ENGINES)
    assert all(row.note for row in MATRIX if row.loads == "conditional")
    seen = [(row.target, row.engine, name, family) for row in MATRIX for name in row.formats for family in row.families]
    assert len(seen) == len(set(seen)), "two rows for one fact"


@pytest.mark.parametrize("target", EXPORTS)
def test_a_target_holds_what_engines_load_from_it(target: str) -> None:
    kind = EXPORTS[target]
    loaded = {name for row in MATRIX if row.target == target and row.loads != "no" for name in row.formats}
    schemes = loaded & set(PRESETS)
    assert schemes <= kind.schemes
    assert {name.removeprefix(KV) for name in loaded if name.startswith(KV)} <= kind.kv_caches
    held_for_nothing = [name for name in kind.schemes if not loading(target, (name,))]
    assert held_for_nothing == []


@pytest.mark.parametrize("scheme", PRESETS)
def test_every_scheme_has_a_target_that_an_engine_loads(scheme: str) -> None:
    assert [target for target in EXPORTS if loading(target, (scheme,))]


def test_what_works_passes() -> None:
    check(recipe(scheme="nvfp4"))
    check(recipe({"format": "compressed-tensors", "engine": "vllm"}, scheme="int4_asym"))
    check(recipe({"format": "modelopt", "engine": "tensorrt-llm"}, scheme="nvfp4", kv_cache="nvfp4"))
    check(recipe({"format": "dense"}, scheme="nf4", kv_cache="int4"))
    mixed = [{"modules": "re:.*self_attn.*", "scheme": "fp8"}, {"modules": "re:.*down_proj", "scheme": None}]
    check(recipe({"format": "modelopt", "engine": "vllm"}, scheme="nvfp4", overrides=mixed))


def test_the_remedy_is_another_target_for_the_engine() -> None:
    error = refused({"format": "modelopt", "engine": "vllm"}, scheme="int4")
    assert error.message == (
        "vLLM 0.33.0 does not load int4 (W4A16_AWQ and W4A8_AWQ are not in its list) from Model Optimizer"
    )
    assert error.remedy == "use `target: {format: compressed-tensors}`, which vllm loads"
    assert error.field == "/target/engine"


def test_or_another_engine() -> None:
    error = refused({"format": "compressed-tensors", "engine": "llama.cpp"}, scheme="int8")
    assert "does not load int8" in error.message
    assert error.remedy == "use `target: {format: dense}`, which llama.cpp loads"


def test_what_a_target_cannot_hold_names_one_that_can() -> None:
    error = refused({"format": "fp8"}, scheme="nvfp4")
    assert error.message == "DeepSeek-style FP8 cannot hold nvfp4"
    assert "format: compressed-tensors" in error.remedy
    assert error.field == "/chain/0/scheme"
    assert refused(scheme="nf4").remedy == "use `target: {format: dense}`, which vllm loads"
    assert refused(scheme="fp8", kv_cache="int4").field == "/chain/0/kv_cache"


def test_fallbacks_and_further_targets_are_asked_too() -> None:
    gate = {"metric": "kl", "max": 0.1, "on_fail": "fallback"}
    error = refused({"format": "gptq"}, scheme="int4", gate=gate, fallback=[{"scheme": "fp8"}])
    assert error.message == "GPTQ cannot hold fp8"
    document = {"model": {"path": "m"}, "chain": [{"technique": "ptq", "scheme": "int4"}], "also": [{"format": "fp8"}]}
    with pytest.raises(RecipeError, match="DeepSeek-style FP8 cannot hold int4"):
        check(recipe_from(document))


def test_a_chain_that_does_not_quantize_needs_a_dense_target() -> None:
    document = {"model": {"path": "m"}, "chain": [{"technique": "rotate"}]}
    check(recipe_from({**document, "target": {"format": "dense", "engine": "vllm"}}))
    for targets in ({}, {"target": {"format": "dense"}, "also": [{"format": "gptq"}]}):
        with pytest.raises(RecipeError, match=r"nothing in the chain quantizes, and .* holds quantized") as caught:
            check(recipe_from({**document, **targets}))
        assert (caught.value.field, caught.value.remedy) == (
            "/chain",
            "add a `ptq` entry, or `target: {format: dense}`",
        )


def test_mixed_precision_is_a_fact_of_its_own() -> None:
    error = refused(
        {"format": "gptq"}, scheme="int4", overrides=[{"modules": "re:.*down_proj", "scheme": "int8_w8a16"}]
    )
    assert "mixed precision from GPTQ" in error.message
    assert error.field == "/target/format"
    uniform = [{"modules": "re:.*down_proj", "scheme": "int4"}]
    check(recipe({"format": "gptq"}, scheme="int4", overrides=uniform))


def test_an_architecture_can_decide() -> None:
    """SGLang reads INT4 with FP8 activations in experts only."""
    asked = recipe({"format": "compressed-tensors", "engine": "sglang"}, scheme="int4_fp8")
    check_target(asked)
    check_target(asked, "moe")
    with pytest.raises(RecipeError, match=r"SGLang .* does not load int4_fp8 from compressed-tensors"):
        check_target(asked, "dense")


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("Llama", "dense"),
        ("Mixtral", "moe"),
        ("DeepseekV3", "moe"),
        ("GptOss", "fused_moe"),
        ("GraniteMoe", "fused_moe"),
    ],
)
def test_a_checkpoint_says_its_family(model: str, family: str, tiny_model: MakeModel) -> None:
    folder = tiny_model(model)
    tensors = TensorReader(folder)
    assert family_of(json.loads((folder / "config.json").read_text()), map(tensors.shape, tensors.names)) == family


def test_fused_experts_are_not_promised_to_transformers() -> None:
    asked = recipe({"format": "compressed-tensors", "engine": "transformers"}, scheme="int4")
    check_target(asked, "moe")
    with pytest.raises(RecipeError, match=r"transformers .* does not load int4 .*one by one"):
        check_target(asked, "fused_moe")


def test_a_config_says_how_many_experts() -> None:
    assert family_of({"text_config": {"num_experts": 8}}) == "moe"


def test_conditions_are_told() -> None:
    assert conditions("compressed-tensors", "vllm", ("int4_fp8",)) == ("compute capability 9.0 (Hopper) only",)
    assert conditions("compressed-tensors", "vllm", ("int4",)) == ()
    assert loading("modelopt", ("int4",)) == ("tensorrt-llm",)
    assert obstacles("modelopt", "tensorrt-llm", ("nvfp4", "fp8", MIXED)) == []
    row = support("fp8", "transformers", "fp8_block")
    assert row is not None
    assert (row.loads, row.evidence) == ("yes", "run")


def test_a_target_whose_writer_is_not_installed_is_refused_before_any_work(
    stdlib_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe({"format": "gguf"}, scheme="int4", also=[])
    document = {**made.model_dump(mode="json"), "also": [{"format": "onnx"}]}
    check_exports(recipe_from(document), stdlib_model, "text-generation")
    monkeypatch.setattr(Onnx, "packages", (*Onnx.packages, "no-such-writer"))
    with pytest.raises(RecipeError, match="ONNX is written by no-such-writer, not installed here") as error:
        check_exports(recipe_from(document), stdlib_model, "text-generation")
    assert error.value.field == "/also/0/format"
    assert "pip install '.[onnx]'" in (error.value.remedy or "")


def test_what_a_target_was_written_by_is_in_the_key_of_its_stage() -> None:
    common = set(environment(ExportWork(export=CompressedTensors())))
    assert common == {"torch", "transformers", "device"}  # as ever: stages that were finished before are found
    for export in (Gguf(), Onnx()):
        told = environment(ExportWork(export=export))
        written_by = export.packages_for("text-generation")
        assert set(told) - common == set(written_by) > set()
        assert all(told[name] == version(name) for name in written_by)


def test_an_encoder_needs_no_writer_of_generators(
    stdlib_model: Path, tiny_classifier: MakeClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe({"format": "onnx"}, scheme="int8")
    monkeypatch.setattr(
        "optcore.export.base.find_spec", lambda name: None if name == "onnxruntime_genai" else find_spec(name)
    )
    check_exports(made, tiny_classifier("Bert"), "text-classification")
    with pytest.raises(RecipeError, match="ONNX is written by onnxruntime-genai, not installed here"):
        check_exports(made, stdlib_model, "text-generation")
    told = environment(ExportWork(export=Onnx()), "text-classification")
    assert "onnxruntime" in told
    assert "onnxruntime-genai" not in told
