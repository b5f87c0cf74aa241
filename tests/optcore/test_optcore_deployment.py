"""Deployment notes: each target gets the settings that fit its engines, its cache and its attention."""

import json
from typing import Any

import pytest
from fixtures.tiny_models import MakeModel

from optcore.attention import attention_of
from optcore.deployment import deployment_notes, formats_of
from optcore.engines import ENGINES, MATRIX, loading
from optcore.quantization import Quantization, QuantizedLayer, QuantizedLinear
from optcore.report import Report
from optcore.report.card import render_card
from optcore.report.page import render_page

CONFIG = {
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 131072,
}


def _notes(target: str, *formats: str, **config: Any) -> dict[str, dict[str, str]]:
    """Values of settings by engine and name."""
    found = deployment_notes(target, formats, {**CONFIG, **config}, "dense")
    names = {title: name for name, title in ENGINES.items()}
    return {names[one.engine]: {setting.name: setting.value for setting in one.settings} for one in found}


@pytest.mark.parametrize("target", sorted({row.target for row in MATRIX}))
def test_every_engine_that_loads_a_target_has_notes_and_no_other(target: str) -> None:
    formats = {name for row in MATRIX if row.target == target for name in row.formats if not name.startswith("kv:")}
    for name in sorted(formats - {"mixed"}):
        assert tuple(_notes(target, name)) == loading(target, (name,), "dense")


def test_a_plain_cache_stays_as_it_is() -> None:
    notes = _notes("compressed-tensors", "int4")
    assert notes["vllm"] == {
        "--max-model-len": "131072",
        "--tensor-parallel-size": "1 or 2 or 4 or 8",
        "--kv-cache-dtype": "auto",
        "--enable-prefix-caching": "",
        "--block-size": "16",
        "--attention-backend": "FLASH_ATTN",
        "--enable-chunked-prefill": "",
    }
    assert notes["sglang"]["--kv-cache-dtype"] == "auto"
    assert notes["transformers"]["attn_implementation"] == "sdpa"
    dense = _notes("dense")
    assert set(dense) == set(ENGINES)
    assert dense["llama.cpp"]["--ctx-size"] == "131072"
    assert dense["onnxruntime-genai"]["search.past_present_share_buffer"] == "true"
    assert dense["tensorrt-llm"]["kv_cache_config.enable_block_reuse"] == "true"


def test_a_rounded_cache_is_named_as_each_engine_does() -> None:
    fp8 = _notes("compressed-tensors", "fp8_dynamic", "kv:fp8")
    assert (fp8["vllm"]["--kv-cache-dtype"], fp8["vllm"]["--attention-backend"]) == ("fp8", "FLASHINFER")
    assert fp8["sglang"]["--kv-cache-dtype"] == "fp8_e4m3"
    assert fp8["tensorrt-llm"]["kv_cache_config.dtype"] == "fp8"
    by_head = _notes("compressed-tensors", "fp8_dynamic", "kv:fp8_head")
    assert set(by_head) == {"vllm"}
    assert by_head["vllm"]["--attention-backend"] == "FLASH_ATTN"
    assert _notes("modelopt", "nvfp4", "kv:nvfp4") == {
        "tensorrt-llm": _notes("modelopt", "nvfp4")["tensorrt-llm"] | {"kv_cache_config.dtype": "nvfp4"}
    }


def test_a_cache_that_a_target_cannot_hold_is_not_promised() -> None:
    (vllm, *_) = deployment_notes("dense", ("int4", "kv:fp8"), CONFIG, "dense")
    dtype = next(setting for setting in vllm.settings if setting.name == "--kv-cache-dtype")
    assert (dtype.value, dtype.why) == (
        "auto",
        "the cache stays in the type of the activations: the figures were measured with a rounded one",
    )
    assert "the KV cache is not rounded" in vllm.conditions


def test_what_has_no_pages_is_told_no_page_size() -> None:
    hybrid = _notes("dense", layer_types=["linear_attention", "full_attention"])
    assert "--no-enable-prefix-caching" in hybrid["vllm"]
    assert not {"--block-size", "--enable-prefix-caching", "--attention-backend"} & hybrid["vllm"].keys()
    assert hybrid["tensorrt-llm"]["kv_cache_config.enable_block_reuse"] == "false"
    assert "--cache-reuse" not in hybrid["llama.cpp"]
    latent = _notes("dense", kv_lora_rank=512, num_key_value_heads=128, num_attention_heads=128)
    assert not {"--block-size", "--attention-backend"} & latent["vllm"].keys()
    assert latent["vllm"]["--tensor-parallel-size"] == "1 or 2 or 4 or 8 or 16"
    odd = _notes("dense", head_dim=80)
    assert odd["vllm"]["--attention-backend"] == "FLASH_ATTN"
    assert "--attention-backend" not in odd["sglang"]


@pytest.mark.parametrize(
    ("config", "degrees"),
    [
        ({"num_attention_heads": 14, "num_key_value_heads": 2}, (1, 2)),
        ({"num_attention_heads": 9, "num_key_value_heads": 3}, (1,)),
        ({"num_attention_heads": 64, "num_key_value_heads": 8}, (1, 2, 4, 8)),
        ({"num_attention_heads": 12}, (1, 2, 4)),
        ({"num_attention_heads": 71, "multi_query": True}, (1,)),
        ({"n_head": 16}, (1, 2, 4, 8, 16)),
        ({"text_config": {"num_attention_heads": 8, "num_key_value_heads": 4}}, (1, 2, 4)),
        ({"num_attention_heads": -3, "num_key_value_heads": "8"}, (1,)),
    ],
)
def test_gpus_that_share_heads(config: dict[str, Any], degrees: tuple[int, ...]) -> None:
    assert attention_of(config).degrees == degrees


@pytest.mark.parametrize(
    ("family", "recurrent", "latent"),
    [
        ("Llama", False, False),
        ("Gemma2", False, False),
        ("Qwen3Next", True, False),
        ("NemotronH", True, False),
        ("Lfm2", True, False),
    ],
)
def test_real_configurations_are_told_apart(family: str, recurrent: bool, latent: bool, tiny_model: MakeModel) -> None:
    config = json.loads((tiny_model(family) / "config.json").read_text())
    found = attention_of(config)
    assert (found.recurrent, found.latent) == (recurrent, latent)
    assert found.heads == config["num_attention_heads"]
    assert found.head_size


def test_formats_are_named_as_the_matrix_does() -> None:
    linears = {name: QuantizedLinear(scheme=name, digest="") for name in ("int4", "fp8")}
    mixed = Quantization(layers=(QuantizedLayer(file="f", linears=linears),), ignored=(), kv_cache="fp8")
    assert formats_of(mixed) == ("fp8", "int4", "mixed", "kv:fp8")
    assert formats_of(None) == ()


def test_notes_are_shown_where_there_are_any() -> None:
    notes = deployment_notes("compressed-tensors", ("int4", "kv:fp8"), CONFIG, "dense")
    bare = Report(model="m", source_digest="", artifact_digest="", scheme="s", recipe={})
    full = bare.model_copy(update={"deployment": notes})
    assert Report.model_validate_json(full.to_json()) == full
    card, page = render_card(full), render_page(full)
    assert "## Deployment" in card
    assert "| `--enable-prefix-caching` |  |" in card
    assert "| `--kv-cache-dtype` | `fp8` |" in card
    assert page.count('class="settings"') == len(notes)
    assert "<code>--kv-cache-dtype</code>" in page
    assert "Deployment" not in render_card(bare) + render_page(bare)
