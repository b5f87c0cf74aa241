"""What few models do have: an encoder's tied head, parallel attention, linears that are called twice, and more."""

import json
import re
from pathlib import Path

import pytest
import torch
from fixtures.exporting import export, plain, run_of
from fixtures.tiny_models import MakeModel, make_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from optcore.errors import RecipeError
from optcore.export import CompressedTensors, Export, GptqFormat
from optcore.quantization import load_quantization
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import fused_groups, probe_state
from optcore.streaming.replay import has_rows_of
from optcore.techniques import Ptq


@pytest.mark.parametrize("family", ["Bert", "Roberta", "ModernBert"])
def test_an_encoder_with_a_tied_head_loads_and_computes(family: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    """Its head has no tensor of its own; one that is not named is taken for a quantized layer without scales."""
    model = tiny_model(family)
    plain("fp8_dynamic").apply(run_of(model, model, tmp_path / "checkpoint"))
    export(CompressedTensors(), tmp_path / "checkpoint", tmp_path / "out", model)
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", dtype=torch.float32, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens_BT = torch.randint(5, 2000, (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = loaded.eval()(tokens_BT).logits
        source = AutoModelForMaskedLM.from_pretrained(model, dtype=torch.float32).eval()(tokens_BT).logits
    assert ((found - source).norm() / source.norm()).item() < 0.02


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # transformers' own use of it
def test_a_linear_that_is_called_twice_counts_by_its_first_call(stdlib_model: Path, tmp_path: Path) -> None:
    """DeBERTa projects relative positions with the weights of queries and keys."""
    extras = {
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "share_att_key": True,
        "position_biased_input": False,
        "norm_rel_ebd": "layer_norm",
        "position_buckets": 64,
        "pooler_hidden_size": 128,
        "type_vocab_size": 0,
    }
    model = make_model("DebertaV2", extras, tmp_path, stdlib_model)
    Ptq(scheme="fp8").apply(run_of(model, model, tmp_path / "checkpoint"))
    found = load_quantization(tmp_path / "checkpoint")
    assert found is not None
    siblings = [f"deberta.encoder.layer.0.attention.self.{name}_proj" for name in ("query", "key", "value")]
    assert len({found.linears[name].tokens for name in siblings}) == 1
    assert not any(linear.fallback for linear in found.linears.values())


def test_feed_forward_beside_attention_takes_its_own_format(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Both read one norm in Cohere's layers, and no engine fuses them."""
    model = tiny_model("Cohere")
    overrides = [{"modules": "re:.*mlp.*", "scheme": "int4_g32"}]
    plain("fp8_dynamic", overrides=overrides).apply(run_of(model, model, tmp_path / "checkpoint"))
    found = load_quantization(tmp_path / "checkpoint")
    assert found is not None
    assert {linear.scheme for name, linear in found.linears.items() if ".mlp." in name} == {"int4_g32"}
    assert {linear.scheme for name, linear in found.linears.items() if ".self_attn." in name} == {"fp8_dynamic"}


def test_experts_right_below_the_layer_share_an_input_scale(stdlib_model: Path, tmp_path: Path) -> None:
    extras = {
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 128,
        "enable_moe_block": True,
        "hidden_size_per_layer_input": 0,
        "global_head_dim": 32,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 16,
    }
    model = make_model("Gemma4Text", extras, tmp_path, stdlib_model)
    Ptq(scheme="nvfp4").apply(run_of(model, model, tmp_path / "checkpoint"))
    tensors = load_file(tmp_path / "checkpoint" / "quantized-00000.safetensors")
    for projection in ("up_proj", "down_proj"):
        pattern = re.compile(rf".*\.experts\.\d+\.{projection}\.input_global_scale")
        scales = [tensor.item() for name, tensor in tensors.items() if pattern.fullmatch(name)]
        assert len(scales) == 4
        assert len(set(scales)) == 1


def test_a_cache_beside_a_recurrent_state_is_measured(stdlib_model: Path, tmp_path: Path) -> None:
    """Falcon-H1 calls its layers hybrid."""
    extras = {"mamba_d_ssm": 128, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 16}
    model = make_model("FalconH1", extras, tmp_path, stdlib_model)
    decoder = Decoder(model)
    assert [decoder.has_key_value_cache(index) for index in range(2)] == [True, True]
    plain("fp8_dynamic", kv_cache="fp8").apply(run_of(model, model, tmp_path / "checkpoint"))
    tensors = load_file(tmp_path / "checkpoint" / "quantized-00001.safetensors")
    assert {name.rpartition(".")[2] for name in tensors if name.endswith(("k_scale", "v_scale"))} == {
        "k_scale",
        "v_scale",
    }


def test_what_a_model_computes_for_its_layers_is_there(stdlib_model: Path, tmp_path: Path) -> None:
    """Falcon-H1's multipliers are in no checkpoint, and the model sets them in layers that are not its own modules."""
    extras = {"mamba_d_ssm": 128, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 16}
    extras |= {"ssm_multipliers": [0.5, 0.25, 2.0, 3.0, 0.125]}
    model = make_model("FalconH1", extras, tmp_path, stdlib_model)
    decoder, tokens_BT = Decoder(model), torch.arange(24)[None]
    state = decoder.embed(tokens_BT)
    for index in range(len(decoder)):
        with decoder.layer(index) as layer, torch.no_grad():
            state = decoder.forward(index, layer, state)
    expected = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(tokens_BT).logits
    torch.testing.assert_close(decoder.logits(state), expected, rtol=1e-4, atol=1e-4)


def test_a_model_without_keys_and_values_refuses_a_cache_format(stdlib_model: Path, tmp_path: Path) -> None:
    model = make_model("Mamba", {"state_size": 16}, tmp_path, stdlib_model)
    run = run_of(model, model, tmp_path / "checkpoint")
    with pytest.raises(RecipeError, match=r"layer 0 .* keys and values"):
        plain("fp8_dynamic", kv_cache="fp8").apply(run)


def test_a_weight_that_is_not_called_as_a_layer_is_left_alone(stdlib_model: Path, tmp_path: Path) -> None:
    """Mamba multiplies with `dt_proj` by hand; an engine would not look for its codes."""
    model = make_model("Mamba", {"state_size": 16}, tmp_path, stdlib_model)
    Ptq(scheme="int8").apply(run_of(model, model, tmp_path / "checkpoint"))
    found = load_quantization(tmp_path / "checkpoint")
    assert found is not None
    assert {name.rpartition(".")[2] for name in found.linears} == {"in_proj", "x_proj", "out_proj"}
    assert sum(name.endswith("dt_proj") for name in found.ignored) == 2


def test_experts_out_of_reach_are_called_in_the_layers_own_type(tiny_model: MakeModel) -> None:
    """Folds are tried on a float32 copy of what a GPU runs in bfloat16."""
    decoder = Decoder(tiny_model("Qwen3Moe"))
    probe = probe_state(decoder)
    one = probe._replace(hidden_BTH=probe.hidden_BTH[:, :1].expand_as(probe.hidden_BTH))
    decoder.dtype = torch.bfloat16
    with decoder.layer(0) as layer:
        groups = fused_groups(decoder, 0, layer.float(), one)
    assert sum("experts" in group[0] for group in groups) == 2 * 4


def test_rows_of_zeros_say_nothing_of_their_source() -> None:
    """An expert that only a padding token reached would seem to read every norm."""
    source = torch.cat([torch.zeros(1, 4), torch.eye(4)])
    assert has_rows_of(torch.eye(4)[:2], source)
    assert not has_rows_of(torch.zeros(2, 4), source)
    assert has_rows_of(torch.cat([torch.zeros(1, 4), torch.eye(4)[:1]]), source)


def test_engines_are_told_of_a_layers_experts_together(tiny_model: MakeModel, tmp_path: Path) -> None:
    """vLLM asks for `mlp.experts`, whatever the checkpoint calls each of them."""
    model = tiny_model("Qwen3Moe")
    target: Export = GptqFormat()
    plain("int4_g64", ignore=["re:model\\.layers\\.0\\.mlp\\.experts.*"]).apply(
        run_of(model, model, tmp_path / "checkpoint")
    )
    export(target, tmp_path / "checkpoint", tmp_path / "out", model)
    rules = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["dynamic"]
    asked = [f"model.layers.{index}.mlp.experts" for index in range(2)]
    assert [any(re.match(rule.removeprefix("-:"), name) for rule in rules) for name in asked] == [True, False]
