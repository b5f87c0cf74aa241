"""Deployment notes: each target gets the settings that fit its engines, its cache and its attention."""

import ast
import json
import shlex
from typing import Any

import pytest
import yaml
from fixtures.tiny_models import MakeModel

from optcore.attention import attention_of
from optcore.deployment import deployment_notes, encoder_notes, formats_of
from optcore.draft_settings import ServedDraft
from optcore.engines import ENGINES, MATRIX, loading
from optcore.quantization import Quantization, QuantizedLayer, QuantizedLinear
from optcore.report import EngineNotes, Report
from optcore.report.card import render_card
from optcore.report.page import render_page
from optcore.report.text import render_table

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
        able = [
            engine for engine in loading(target, (name,), "dense") if engine != "onnxruntime"
        ]  # it generates nothing
        assert list(_notes(target, name)) == able


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
    assert set(dense) == set(ENGINES) - {"onnxruntime"}
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


def _by_engine(notes: tuple[EngineNotes, ...]) -> dict[str, EngineNotes]:
    names = {title: name for name, title in ENGINES.items()}
    return {names[one.engine]: one for one in notes}


def _typed(target: str, *formats: str, draft: ServedDraft | None = None) -> dict[str, tuple[str, ...]]:
    found = _by_engine(deployment_notes(target, formats, CONFIG, "dense", draft))
    return {engine: one.commands for engine, one in found.items()}


def test_commands_hold_the_settings() -> None:
    typed = _typed("compressed-tensors", "fp8_dynamic", "kv:fp8")
    (served,) = typed["vllm"]
    assert shlex.split(served.replace("\\\n", " ")) == [
        *("vllm", "serve", ".", "--max-model-len", "131072", "--kv-cache-dtype", "fp8", "--enable-prefix-caching"),
        *("--block-size", "16", "--attention-backend", "FLASHINFER", "--enable-chunked-prefill"),
    ]
    assert typed["sglang"][0].startswith("python -m sglang.launch_server --model-path . ")
    assert "--kv-cache-dtype fp8_e4m3" in typed["sglang"][0]


def test_tensorrt_reads_its_settings_from_the_file_that_is_written_first() -> None:
    config, served, measured = _typed("modelopt", "nvfp4", "kv:nvfp4")["tensorrt-llm"]
    first, *body, last = config.splitlines()
    assert (first, last) == ("cat > trtllm.yaml <<'END'", "END")
    assert yaml.safe_load("\n".join(body)) == {
        "max_seq_len": 131072,
        "kv_cache_config": {"dtype": "nvfp4", "enable_block_reuse": True, "tokens_per_block": 32},
        "enable_chunked_prefill": True,
        "attn_backend": "TRTLLM",
    }
    assert served == "trtllm-serve . --backend pytorch --config trtllm.yaml"
    assert measured.startswith("trtllm-bench --model . --model_path . throughput --backend pytorch ")


def test_a_draft_is_part_of_the_command() -> None:
    draft = ServedDraft("eagle3", "", 3, (1, 2, 3))
    typed = _typed("modelopt", "nvfp4", draft=draft)
    words = shlex.split(typed["vllm"][0].replace("\\\n", " "))
    assert json.loads(words[words.index("--speculative-config") + 1])["model"] == "draft"
    config = yaml.safe_load("\n".join(typed["tensorrt-llm"][0].splitlines()[1:-1]))
    assert config["speculative_config"]["eagle3_layers_to_capture"] == [1, 2, 3]


def test_files_of_an_engine_need_no_conversion() -> None:
    notes = _by_engine(deployment_notes("gguf", ("q4_k", "q6_k", "mixed"), CONFIG, "dense"))
    assert notes["llama.cpp"].given == "arguments of llama-server"
    served, asked = notes["llama.cpp"].commands
    assert served.startswith("llama-server -m model.gguf ")
    assert asked.startswith("llama-cli -m model.gguf ")
    assert _typed("dense")["llama.cpp"][0] == "python convert_hf_to_gguf.py . --outfile model.gguf"
    onnx = _by_engine(deployment_notes("onnx", ("int4",), CONFIG, "dense"))["onnxruntime-genai"]
    assert onnx.given == "keys of genai_config.json"
    assert 'og.Model(".")' in onnx.commands[0]
    builder, generate = _typed("gptq", "int4")["onnxruntime-genai"]
    assert "-p int4 -e cpu --extra_options shared_embeddings=false" in builder
    assert 'og.Model("onnx")' in generate
    assert _typed("modelopt", "fp8")["onnxruntime-genai"] == ()


def test_python_that_is_shown_is_python() -> None:
    targets = ("dense", "onnx", "gptq")
    typed = [command for target in targets for found in _typed(target, "int4").values() for command in found]
    typed += [command for one in encoder_notes("onnx", ("int8",), "text-classification") for command in one.commands]
    pieces = [command for command in typed if command.startswith(("import ", "from "))]
    assert len(pieces) == 6
    for piece in pieces:
        ast.parse(piece)


def test_names_in_the_generation_loop_are_the_librarys() -> None:
    og = pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is an optional package")
    (code,) = _typed("onnx", "int4")["onnxruntime-genai"]
    used = {node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)}
    classes = (og, og.Model, og.Tokenizer, og.GeneratorParams, og.Generator)
    assert {name for name in used if not any(hasattr(one, name) for one in classes)} == set()


def test_encoders_have_their_own_engines() -> None:
    onnx = _by_engine(encoder_notes("onnx", ("int8",), "text-classification"))
    assert list(onnx) == ["onnxruntime"]
    assert {setting.name for setting in onnx["onnxruntime"].settings} == {
        "graph_optimization_level",
        "intra_op_num_threads",
    }
    dense = _by_engine(encoder_notes("dense", (), "fill-mask"))
    assert "AutoModelForMaskedLM" in dense["transformers"].commands[0]
    assert "vllm" not in dense


@pytest.mark.parametrize(
    ("target", "formats", "engine", "said"),
    [
        ("modelopt", ("fp8",), "vllm", "8.9 and above multiplies in FP8; from 7.5"),
        ("modelopt", ("nvfp4",), "tensorrt-llm", "10.0 and above multiplies in FP4"),
        ("compressed-tensors", ("int8",), "vllm", "7.5 to 9.0 multiplies in INT8"),
        ("gptq", ("int4",), "sglang", "weights are decoded to 16 bits as they are multiplied"),
        ("gguf", ("q4_k",), "llama.cpp", "repacked at loading for AVX2"),
        ("gguf", ("q6_k",), "llama.cpp", "for NEON with dot products alone"),
        ("gguf", ("iq4_xs",), "llama.cpp", "expect q4_k to be faster"),
        ("onnx", ("int4",), "onnxruntime-genai", "MatMulNBits decodes"),
        ("dense", ("int4",), "vllm", "nothing: rounded weights"),
        ("compressed-tensors", ("fp8_dynamic",), "transformers", "nothing: weights are decoded"),
    ],
)
def test_hardware_is_told_by_format(target: str, formats: tuple[str, ...], engine: str, said: str) -> None:
    (found,) = _by_engine(deployment_notes(target, formats, CONFIG, "dense"))[engine].hardware
    assert said in found


def test_nothing_is_said_of_what_was_not_quantized() -> None:
    assert {one.hardware for one in deployment_notes("dense", (), CONFIG, "dense")} == {()}
    (onnx,) = encoder_notes("onnx", ("int8",), "text-classification")
    assert "x86 with VNNI" in onnx.hardware[0]


def test_commands_and_hardware_are_shown() -> None:
    notes = deployment_notes("modelopt", ("nvfp4", "kv:nvfp4"), CONFIG, "dense")
    full = Report(model="m", source_digest="", artifact_digest="", scheme="s", recipe={}, deployment=notes)
    card, page = render_card(full), render_page(full)
    assert "```shell\ntrtllm-serve . --backend pytorch --config trtllm.yaml\n```" in card
    assert "- What makes it fast: compute capability 10.0" in card
    assert "<code>trtllm-serve . --backend pytorch --config trtllm.yaml</code>" in page
    assert "What makes it fast: compute capability 10.0" in page
    text = render_table(full)
    assert "typed in the result's folder:\n" in text
    assert f"  {ENGINES['tensorrt-llm']}: trtllm-serve . --backend pytorch --config trtllm.yaml\n" in text
    assert "cat >" not in text
