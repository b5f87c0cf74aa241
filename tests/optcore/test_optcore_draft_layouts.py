"""Layouts of drafts: exactly what engines look for, the same numbers back, and nothing from a folder that lies."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.draft_folders import (
    FACTS,
    HEAD,
    HEADS,
    INNER,
    KNOWN,
    LAYERS,
    SHARED,
    SIZE,
    TAPS,
    WIDTH,
    as_draft,
    block,
    eagle3,
    medusa,
    mtp,
)
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from optcore.drafts.folder import layout_of, read_parts, write_draft, write_parts
from optcore.drafts.parts import DraftParts
from optcore.errors import BadCheckpoint, OptError, RecipeError, UnsafeCheckpoint

LAYER = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_attention_heads": HEADS,
    "num_key_value_heads": SHARED,
    "head_dim": HEAD,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": None,
    "max_position_embeddings": 512,
    "vocab_size": SIZE,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": 0,
}
ONE_LAYER = {**LAYER, "model_type": "llama", "num_hidden_layers": 1}
ATTENTION = {
    "self_attn.q_proj.weight": ("bfloat16", (HEADS * HEAD, 2 * WIDTH)),
    "self_attn.k_proj.weight": ("bfloat16", (SHARED * HEAD, 2 * WIDTH)),
    "self_attn.v_proj.weight": ("bfloat16", (SHARED * HEAD, 2 * WIDTH)),
    "self_attn.o_proj.weight": ("bfloat16", (WIDTH, HEADS * HEAD)),
}
EAGLE_LAYER = {
    "hidden_norm.weight": ("bfloat16", (WIDTH,)),
    "input_layernorm.weight": ("bfloat16", (WIDTH,)),
    "post_attention_layernorm.weight": ("bfloat16", (WIDTH,)),
    "mlp.gate_proj.weight": ("bfloat16", (INNER, WIDTH)),
    "mlp.up_proj.weight": ("bfloat16", (INNER, WIDTH)),
    "mlp.down_proj.weight": ("bfloat16", (WIDTH, INNER)),
    **ATTENTION,
}
AROUND = {
    "fc.weight": ("bfloat16", (WIDTH, 3 * WIDTH)),
    "norm.weight": ("bfloat16", (WIDTH,)),
    "lm_head.weight": ("bfloat16", (KNOWN, WIDTH)),
}
D2T, T2D = {"d2t": ("int64", (KNOWN,))}, {"t2d": ("bool", (SIZE,))}
IDS = "eagle_aux_hidden_state_layer_ids"


def _written(parts: DraftParts, folder: Path, layout: str) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    write_draft(as_draft(parts), folder, layout, FACTS, tokens=parts.tokens)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    held = load_file(folder / "model.safetensors")
    found = {name: (str(one.dtype).removeprefix("torch."), tuple(one.shape)) for name, one in held.items()}
    return json.loads((folder / "config.json").read_text()), found


def test_the_eagle_layout(tmp_path: Path) -> None:
    config, tensors = _written(eagle3(), tmp_path, "eagle")
    assert config == {
        "architectures": ["LlamaForCausalLMEagle3"],
        **ONE_LAYER,
        "torch_dtype": "bfloat16",
        "draft_vocab_size": KNOWN,
        IDS: [2, 4, 5],
        "eagle_config": {"use_aux_hidden_state": True, IDS: [1, 3, 4]},
    }
    assert tensors == {f"midlayer.{name}": form for name, form in EAGLE_LAYER.items()} | AROUND | D2T | T2D


def test_the_modelopt_layout(tmp_path: Path) -> None:
    config, tensors = _written(eagle3(), tmp_path, "modelopt")
    assert config == {
        "architectures": ["LlamaForCausalLMEagle3"],
        **ONE_LAYER,
        "torch_dtype": "bfloat16",
        "pretraining_tp": 1,
        "draft_vocab_size": KNOWN,
        IDS: [2, 4, 5],
        "eagle_config": {
            IDS: [1, 3, 4],
            "use_aux_hidden_state": True,
            "use_input_layernorm_in_first_layer": True,
            "use_last_layernorm": True,
            "use_mtp_layernorm": False,
            "next_layer_regular": True,
            "parallel_draft_step": 1,
            "parallel_draft_heads_num_layers": 1,
        },
    }
    assert tensors == {f"midlayer.{name}": form for name, form in EAGLE_LAYER.items()} | AROUND | D2T


def test_the_speculators_layout(tmp_path: Path) -> None:
    config, tensors = _written(eagle3(normed=True), tmp_path, "speculators")
    assert config == {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.9.0",
        "dtype": "bfloat16",
        "draft_vocab_size": KNOWN,
        "target_hidden_size": None,
        "norm_before_residual": True,
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        "embed_requires_grad": False,
        "tie_word_embeddings": False,
        IDS: [2, 4, 5],
        "transformer_layer_config": ONE_LAYER,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 5}],
            "verifier": {"name_or_path": "someone/tiny-target", "architectures": ["LlamaForCausalLM"]},
        },
    }
    assert tensors == {f"layers.0.{name}": form for name, form in EAGLE_LAYER.items()} | AROUND | D2T | T2D


def test_the_medusa_layout(tmp_path: Path) -> None:
    config, tensors = _written(medusa(), tmp_path, "medusa")
    assert config == {
        "architectures": ["MedusaModel"],
        "model_type": "medusa",
        "base_model_name_or_path": "someone/tiny-target",
        "hidden_size": WIDTH,
        "vocab_size": SIZE,
        "truncated_vocab_size": KNOWN,
        "num_heads": 3,
        "num_hidden_layers": 2,
        "medusa_fc_bias": True,
        "original_lm_head": False,
        "torch_dtype": "bfloat16",
    }
    blocks = [f"blocks.{head}.layers.{layer}" for head in range(3) for layer in range(2)]
    assert tensors == {
        **{f"{name}.weight": ("bfloat16", (WIDTH, WIDTH)) for name in blocks},
        **{f"{name}.bias": ("bfloat16", (WIDTH,)) for name in blocks},
        **{f"lm_heads.{head}.weight": ("bfloat16", (KNOWN, WIDTH)) for head in range(3)},
        "token_map": ("int64", (KNOWN,)),
    }


def test_the_dflash_layout(tmp_path: Path) -> None:
    config, tensors = _written(block()._replace(mask_token=None), tmp_path, "dflash")
    assert config == {
        "architectures": ["DFlashDraftModel"],
        **LAYER,
        "model_type": "qwen3",
        "num_hidden_layers": 2,
        "torch_dtype": "bfloat16",
        "layer_types": ["full_attention", "full_attention"],
        "sliding_window": None,
        "use_sliding_window": False,
        "block_size": 5,
        "num_target_layers": LAYERS,
        "dflash_config": {"target_layer_ids": [1, 3, 4]},
    }
    layer = {name: (dtype, (shape[0], WIDTH)) for name, (dtype, shape) in ATTENTION.items() if "o_proj" not in name}
    layer |= {name: form for name, form in EAGLE_LAYER.items() if name not in layer and name != "hidden_norm.weight"}
    layer |= {f"self_attn.{name}.weight": ("bfloat16", (HEAD,)) for name in ("q_norm", "k_norm")}
    around = {name: AROUND[name] for name in ("fc.weight", "norm.weight")} | {
        "hidden_norm.weight": ("bfloat16", (WIDTH,))
    }
    assert tensors == {f"layers.{i}.{name}": form for i in range(2) for name, form in layer.items()} | around


KINDS: dict[str, tuple[Callable[[], DraftParts], str]] = {
    "eagle": (eagle3, "eagle"),
    "eagle, every token": (lambda: eagle3(SIZE), "eagle"),
    "modelopt": (eagle3, "modelopt"),
    "modelopt, every token": (lambda: eagle3(SIZE), "modelopt"),
    "speculators": (lambda: eagle3(normed=True), "speculators"),
    "speculators, every token": (lambda: eagle3(SIZE), "speculators"),
    "medusa": (medusa, "medusa"),
    "medusa, every token": (lambda: medusa(SIZE), "medusa"),
    "block": (block, "dflash"),
    "block, a learned mask": (lambda: block(mask_token=None), "dflash"),
    "mtp": (mtp, "plain"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_was_written(kind: str, tmp_path: Path) -> None:
    made, layout = KINDS[kind][0](), KINDS[kind][1]
    assert layout_of(made.method, layout) == layout
    write_parts(made, tmp_path, layout, FACTS)
    found = read_parts(tmp_path, LAYERS)
    assert found._replace(tensors={}, vocabulary=None) == made._replace(tensors={}, vocabulary=None)  # type: ignore[arg-type]
    assert found.vocabulary.size == SIZE
    assert torch.equal(found.vocabulary.ids_D, made.vocabulary.ids_D)
    assert found.tensors.keys() == made.tensors.keys()
    for name, tensor in made.tensors.items():
        assert torch.equal(found.tensors[name], tensor.bfloat16()), name


def test_float32_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    made = eagle3()
    write_parts(made, tmp_path, "eagle", FACTS, torch.float32)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "float32"
    assert torch.equal(read_parts(tmp_path, LAYERS).tensors["fc.weight"], made.tensors["fc.weight"])


@pytest.mark.parametrize("layout", ["eagle", "modelopt"])
def test_transformers_reads_the_configuration(layout: str, tmp_path: Path) -> None:
    write_parts(eagle3(), tmp_path, layout, FACTS)
    found = AutoConfig.from_pretrained(tmp_path)
    assert type(found).__name__ == "LlamaConfig"
    assert found.rope_parameters == {"rope_theta": 500000.0, "rope_type": "default"}
    assert (found.head_dim, found.num_hidden_layers, found.draft_vocab_size) == (HEAD, 1, KNOWN)
    assert (getattr(found, IDS), found.eagle_config[IDS]) == ([2, 4, 5], list(TAPS))
    assert found.dtype == torch.bfloat16


def test_transformers_reads_a_block_as_qwen3(tmp_path: Path) -> None:
    write_parts(block(), tmp_path, "dflash", FACTS)
    found = AutoConfig.from_pretrained(tmp_path)
    assert type(found).__name__ == "Qwen3Config"
    assert (found.rope_parameters["rope_theta"], found.block_size) == (500000.0, 5)
    assert found.dflash_config == {"mask_token_id": 7, "target_layer_ids": [1, 3, 4]}


@pytest.mark.parametrize(
    ("said", "taps"),
    [
        ({IDS: [2, 4, 5]}, (1, 3, 4)),
        ({"eagle_config": {IDS: [0, 2, 7]}}, (0, 2, 7)),
        ({}, (1, 3, 4)),
    ],
)
def test_layers_are_taken_as_the_engine_of_a_key_takes_them(
    said: dict[str, Any], taps: tuple[int, ...], tmp_path: Path
) -> None:
    write_parts(eagle3(), tmp_path, "eagle", FACTS)
    _change(tmp_path, lambda config: [config.pop(IDS), config.pop("eagle_config"), config.update(said)])
    assert read_parts(tmp_path, LAYERS).taps == taps


def test_layouts_refuse_what_their_engines_would_compute_otherwise(tmp_path: Path) -> None:
    for layout in ("eagle", "modelopt"):
        with pytest.raises(RecipeError, match="adds to normed features"):
            write_parts(eagle3(normed=True), tmp_path, layout, FACTS)
    with pytest.raises(RecipeError, match="ascending"):
        write_parts(eagle3()._replace(taps=(3, 1, 4)), tmp_path, "eagle", FACTS)
    shared = {name: tensor for name, tensor in medusa().tensors.items() if not name.startswith("lm_heads")}
    with pytest.raises(RecipeError, match="Medusa heads"):
        write_parts(medusa()._replace(tensors=shared), tmp_path, "medusa", FACTS)
    assert not (tmp_path / "config.json").exists()


def _change(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def _retensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    held = load_file(path)
    change(held)
    save_file(held, path)


def _set(name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda held: held.update({name: value})


LIES: dict[str, tuple[str, Callable[[dict[str, Any]], object], str]] = {
    "no head": ("tensors", lambda held: held.pop("lm_head.weight"), "lacks lm_head"),
    "a wrong shape": ("tensors", _set("fc.weight", torch.zeros(WIDTH, WIDTH)), "fc.weight as float32"),
    "codes": ("tensors", _set("norm.weight", torch.zeros(WIDTH, dtype=torch.int8)), "norm.weight as int8"),
    "infinity": ("tensors", _set("norm.weight", torch.full((WIDTH,), torch.inf)), "not finite"),
    "a bias": ("tensors", _set("midlayer.self_attn.q_proj.bias", torch.zeros(4)), "q_proj.bias, which no draft"),
    "tokens out of range": ("tensors", _set("d2t", torch.full((KNOWN,), SIZE)), "leads out of"),
    "tokens below zero": ("tensors", _set("d2t", torch.full((KNOWN,), -1)), "leads out of"),
    "tokens twice": ("tensors", _set("d2t", -torch.arange(KNOWN)), "twice or out of order"),
    "tokens as int32": ("tensors", _set("d2t", torch.zeros(KNOWN, dtype=torch.int32)), "int64"),
    "no d2t": ("tensors", lambda held: held.pop("d2t"), "no d2t"),
    "another t2d": ("tensors", _set("t2d", torch.ones(SIZE, dtype=torch.bool)), "disagrees"),
    "a shorter t2d": ("tensors", _set("t2d", torch.ones(3, dtype=torch.bool)), "disagrees"),
    "layers that disagree": ("config", _set(IDS, [1, 3, 4]), "for layers whose outputs"),
    "no such layer": (
        "config",
        lambda config: (config.pop(IDS), config["eagle_config"].update({IDS: [1, 8]})),
        "has 8",
    ),
    "the embeddings as a layer": ("config", _set(IDS, [0, 4, 5]), "ascending layers"),
    "words for layers": ("config", _set(IDS, ["a"]), "list of layers"),
    "words for a section": ("config", _set("eagle_config", "x"), "an object is needed"),
    "two layers": ("config", _set("num_hidden_layers", 2), "has 2 layers"),
    "an endless vocabulary": ("config", _set("vocab_size", 2**40), "vocab_size"),
    "a size below one": ("config", _set("hidden_size", 0), "hidden_size"),
    "stretched positions": ("config", _set("rope_scaling", {"rope_type": "llama3"}), "rotary positions"),
    "another activation": ("config", _set("hidden_act", "gelu"), "activation"),
    "more norms": ("config", _set("fc_norm", True), "fc_norm"),
    "quantized": ("config", _set("quantization_config", {"quant_method": "fp8"}), "quantized"),
    "another family": ("config", _set("architectures", ["LlamaForCausalLM"]), "no layout that is known"),
    "no families": ("config", _set("architectures", 5), "no layout that is known"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_folder_that_lies_is_refused(lie: str, tmp_path: Path) -> None:
    where, change, said = LIES[lie]
    write_parts(eagle3(), tmp_path, "eagle", FACTS)
    (_retensor if where == "tensors" else _change)(tmp_path, change)
    with pytest.raises(BadCheckpoint, match=said):
        read_parts(tmp_path, LAYERS)


OTHER_LIES: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "medusa, a token map out of range": ("medusa", lambda held: held.update(token_map=torch.full((KNOWN,), SIZE))),
    "medusa, no token map": ("medusa", lambda held: held.pop("token_map")),
    "medusa, a head too few": ("medusa", lambda held: held.pop("lm_heads.2.weight")),
    "dflash, a layer too few": ("block", lambda held: held.pop("layers.1.mlp.up_proj.weight")),
    "speculators, a tensor too few": ("speculators", lambda held: held.pop("layers.0.hidden_norm.weight")),
    "mtp, t2d that disagrees": ("mtp", lambda held: held.update(t2d=~held["t2d"])),
}


@pytest.mark.parametrize("lie", OTHER_LIES)
def test_other_layouts_are_checked_too(lie: str, tmp_path: Path) -> None:
    kind, change = OTHER_LIES[lie]
    write_parts(KINDS[kind][0](), tmp_path, KINDS[kind][1], FACTS)
    _retensor(tmp_path, change)
    with pytest.raises(BadCheckpoint):
        read_parts(tmp_path, LAYERS)


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _link_away(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.rename(folder.parent / "elsewhere.safetensors")
    path.symlink_to(folder.parent / "elsewhere.safetensors")


def _spoil(folder: Path) -> None:
    (folder / "config.json").write_text("[1")


@pytest.mark.parametrize(
    ("spoil", "error"),
    [(_cut, BadCheckpoint), (_pickle, UnsafeCheckpoint), (_link_away, UnsafeCheckpoint), (_spoil, BadCheckpoint)],
)
def test_a_folder_that_is_no_checkpoint_is_refused(
    spoil: Callable[[Path], None], error: type[OptError], tmp_path: Path
) -> None:
    folder = tmp_path / "draft"
    write_parts(eagle3(), folder, "eagle", FACTS)
    spoil(folder)
    with pytest.raises(error):
        read_parts(folder, LAYERS)
    with pytest.raises(BadCheckpoint, match=r"config\.json"):
        read_parts(tmp_path / "nothing", LAYERS)
