"""A model's shapes from its headers alone, beside what torch counts in the model that they describe."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.tiny_models import MakeModel

from optcore.errors import BadCheckpoint
from optcore.estimate.changes import after, pruned
from optcore.estimate.document import Machine
from optcore.estimate.estimate import estimate
from optcore.estimate.facts import ModelFacts, from_folder, from_headers
from optcore.estimate.stored import Model
from optcore.recipe import recipe_from
from optcore.sizes import parameters, read_header, weight_files
from optcore.techniques import Merge, Prune, Upcycle


def llama(layers: int, hidden: int, ffn: int, heads: int, kv: int, vocabulary: int) -> ModelFacts:
    """The shapes of an untied Llama, in bfloat16."""
    width, tensors = hidden // heads, dict[str, tuple[tuple[int, ...], str]]()
    tensors["model.embed_tokens.weight"] = tensors["lm_head.weight"] = ((vocabulary, hidden), "BF16")
    tensors["model.norm.weight"] = ((hidden,), "BF16")
    for layer in range(layers):
        shapes: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv * width, hidden),
            "self_attn.v_proj": (kv * width, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (ffn, hidden),
            "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        tensors |= {f"model.layers.{layer}.{name}.weight": (shape, "BF16") for name, shape in shapes.items()}
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        "max_position_embeddings": 131_072,
    }
    return from_headers(config, tensors)


LLAMA_70B = llama(80, 8192, 28672, 64, 8, 128_256)


@pytest.mark.parametrize(
    "family", ["Llama", "Qwen2", "Gemma2", "Mixtral", "Qwen3Moe", "GptOss", "GPTNeoX", "OPT", "Bert"]
)
def test_parameters_are_those_that_torch_counts(family: str, tiny_model: MakeModel) -> None:
    import transformers

    folder = tiny_model(family)
    facts, config = from_folder(folder), transformers.AutoConfig.from_pretrained(folder)
    auto = transformers.AutoModelForMaskedLM if family == "Bert" else transformers.AutoModelForCausalLM
    import torch

    with torch.device("meta"):
        model = auto.from_config(config)
    assert facts.parameters == parameters(folder) == sum(one.numel() for one in model.parameters())
    assert facts.layers == config.num_hidden_layers
    assert facts.vocabulary == config.vocab_size
    assert facts.is_encoder is (family == "Bert")
    assert facts.experts == (4 if family in ("Mixtral", "Qwen3Moe", "GptOss") else 0)
    assert facts.is_known
    assert sum(facts.layer_parameters) + facts.outside == facts.parameters
    if facts.experts:
        assert facts.active < sum(one.elements for one in facts.linears)
    recipe = recipe_from({"model": {"id": "a/b"}, "chain": [{"technique": "ptq", "scheme": "fp8_dynamic"}]})
    found = estimate(recipe, facts, Machine())
    assert [stage.stage for stage in found.stages] == ["0-fetch", "1-ptq", "2-export", "3-evaluate"], found.problems
    linears = sum(one.elements for one in facts.linears)
    assert facts.weight_bytes - linears < found.results[0].weight_bytes < 1.1 * facts.weight_bytes


def test_headers_from_elsewhere_say_the_same(stdlib_model: Path) -> None:
    headers = {name: one for path in weight_files(stdlib_model) for name, one in read_header(path).items()}
    tensors = {name: (tuple(one["shape"]), str(one["dtype"])) for name, one in headers.items()}  # type: ignore[arg-type]
    config = json.loads((stdlib_model / "config.json").read_text())
    assert from_headers(config, tensors) == from_folder(stdlib_model)


def test_a_large_model_is_reckoned_at_once() -> None:
    assert LLAMA_70B.parameters == 70_553_706_496
    assert LLAMA_70B.weight_bytes == 2 * LLAMA_70B.parameters
    recipe = recipe_from({"model": {"id": "a/b"}, "chain": [{"technique": "ptq", "scheme": "nvfp4"}]})
    started = time.process_time()
    for _ in range(5):
        estimate(recipe, LLAMA_70B, Machine())
    assert (time.process_time() - started) / 5 < 0.1


def test_a_file_without_embeddings_is_no_model() -> None:
    with pytest.raises(BadCheckpoint, match="embeddings"):
        from_headers({"model_type": "llama"}, {"norm.weight": ((4,), "F32")})


TABLE: dict[str, tuple[tuple[int, ...], str]] = {"model.embed_tokens.weight": ((1000, 64), "F32")}


@pytest.mark.parametrize(
    "config",
    [
        {"head_dim": "abc"},
        {"vocab_size": -1},
        {"vocab_size": 10**400},
        {"head_dim": float("inf")},
        {"num_attention_heads": {}},
        {"max_position_embeddings": "x"},
        {"text_config": "x"},
        {"architectures": 5},
    ],
)
def test_a_configuration_that_no_model_has_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(BadCheckpoint) as caught:
        from_headers(config, TABLE)
    assert caught.value.field == "/model"


def test_what_differs_by_layer_is_no_number_of_the_model() -> None:
    config = {"num_attention_heads": 4, "num_key_value_heads": [1, 2], "intermediate_size": [8, 16]}
    facts = from_headers(config, TABLE)
    assert (facts.kv_heads, facts.intermediate, facts.anatomy.group) == (4, 256, 1)


@pytest.mark.parametrize("number", ["99999999", "9" * 5000])
def test_a_layer_far_away_is_refused(number: str) -> None:
    """Memory went by the number, which is anybody's: 1.6 GB for a tensor of layer 99999999."""
    with pytest.raises(BadCheckpoint, match="layer"):
        from_headers({}, {**TABLE, f"model.layers.{number}.up_proj.weight": ((64, 64), "F32")})


def test_more_tensors_than_any_model_has_are_refused() -> None:
    with pytest.raises(BadCheckpoint, match="300001 tensors"):
        from_headers({}, {str(number): ((1,), "F32") for number in range(300_001)})


@pytest.mark.parametrize("shape", [(-1, 4), ("x",), (1,) * 9, (2**40,)])
def test_a_shape_that_no_tensor_has_is_refused(shape: Any) -> None:
    with pytest.raises(BadCheckpoint, match="shape"):
        from_headers({}, {**TABLE, "x": (shape, "F32")})


def test_what_formulas_do_not_know_is_said_and_refuses_nothing() -> None:
    empty = {**TABLE, "model.layers.0.up_proj.weight": ((0, 64), "F32")}
    recipe = recipe_from({"model": {"id": "a/b"}, "chain": [{"technique": "ptq", "scheme": "int4_asym"}]})
    found = estimate(recipe, from_headers({}, empty), Machine())
    assert found.fits
    assert "could not be reckoned" in found.problems[0].message


def test_pruning_cuts_as_the_engine_does(stdlib_model: Path) -> None:
    narrow = pruned(Prune(width=0.25, depth=1), from_folder(stdlib_model))
    assert (narrow.layers, narrow.hidden, narrow.intermediate) == (5, 192, 576)
    # queries 256 x 192, keys and values 128 x 192, outputs 192 x 256; three of 576 x 192; two norms
    layer = 2 * 256 * 192 + 2 * 128 * 192 + 3 * 576 * 192 + 2 * 192
    assert narrow.parameters == 5 * layer + 2048 * 192 + 192


def test_experts_and_layers_are_counted_again(stdlib_model: Path) -> None:
    facts = from_folder(stdlib_model)
    mixed = after(Upcycle(experts=4, top_k=2), Model(facts), {}, "/chain/0").facts
    ffn = 3 * 768 * 256
    assert mixed.parameters == facts.parameters + 6 * (3 * ffn + 4 * 256)
    stacked = Merge.model_validate({"method": "passthrough", "slices": [{"layers": [0, 4]}, {"layers": [2, 6]}]})
    assert after(stacked, Model(facts), {}, "/chain/0").facts.layers == 8
