"""Mixes of block formats, against the file that llama.cpp's own quantizer writes of the same model."""

from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType, LlamaFileType

from optcore.errors import RecipeError
from optcore.export import CompressedTensors, Dense
from optcore.mixes import MIXES, Anatomy, anatomy, fitting, formats_in, resolved, role_of, title_of
from optcore.plan import check, results
from optcore.recipe import Recipe, recipe_from
from optcore.schemes import GGML_FORMATS
from optcore.tables import formats_of_tables, tables

llama_cpp = pytest.importorskip("llama_cpp", reason="llama.cpp was not compiled, and its quantizer is the source here")
FILE_TYPES = {name: getattr(LlamaFileType, f"MOSTLY_{name.upper()}") for name in MIXES if name != "q2_k_m"}
FILE_TYPES["q2_k_m"] = LlamaFileType.MOSTLY_Q2_K
PARTS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_exps": "block_sparse_moe.experts.0.w1",
    "ffn_up_exps": "block_sparse_moe.experts.0.w3",
    "ffn_down_exps": "block_sparse_moe.experts.0.w2",
}
FALCON = {
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
ROWS = 4
"""Of every matrix: the quantizer asks for blocks along the inputs alone."""


class Made(NamedTuple):
    """A model for llama.cpp to quantize."""

    layers: int
    experts: int = 0
    key_heads: int = 4
    width: int = 256
    inner: int = 256
    is_tied: bool = False
    architecture: str = "llama"

    @property
    def anatomy(self) -> Anatomy:
        return Anatomy(self.layers, self.experts, 4 // self.key_heads, self.architecture)


MODELS = {
    "6 layers": Made(6),
    "32 layers": Made(32),
    "grouped": Made(6, key_heads=1),
    "70B": Made(80, key_heads=2),
    "8 experts": Made(17, experts=8),
    "4 experts": Made(16, experts=4, key_heads=1),
    "narrow": Made(6, width=96, inner=160),
    "tied": Made(6, is_tied=True),
    "narrow and tied": Made(6, width=96, is_tied=True),
    "Falcon": Made(32, architecture="falcon"),
}


def shapes(made: Made) -> dict[str, tuple[int, ...]]:
    """Of the matrices, by their name in the file."""
    parts = FALCON if made.architecture == "falcon" else PARTS
    several = (made.experts,) if made.experts else ()
    layer = {
        name: (*(several if "ffn" in name else ()), ROWS, made.inner if "down" in name else made.width)
        for name in parts
        if parts is FALCON or "attn" in name or name.endswith("_exps") == bool(made.experts)
    }
    found = {f"blk.{index}.{name}": shape for index in range(made.layers) for name, shape in layer.items()}
    head = {} if made.is_tied else {"output": (ROWS, made.width)}
    return {"token_embd": (ROWS, made.width), **found, **head}


def write(made: Made, path: Path) -> None:
    """The model in 16 bits."""
    writer = gguf.GGUFWriter(path, made.architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(made.width)
    writer.add_block_count(made.layers)
    writer.add_feed_forward_length(made.inner)
    writer.add_head_count(4)
    writer.add_head_count_kv(made.key_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_vocab_size(ROWS)
    if made.experts:
        writer.add_expert_count(made.experts)
        writer.add_expert_used_count(2)
    for name, shape in shapes(made).items():
        writer.add_tensor(f"{name}.weight", np.full(shape, 0.01, dtype=np.float16))
    writer.add_tensor("output_norm.weight", np.ones(made.width, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def by_llama_cpp(source: Path, out: Path, file_type: LlamaFileType) -> dict[str, str]:
    """The format of each matrix in the file that llama.cpp writes."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = int(file_type), 1
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), params) == 0
    tensors = gguf.GGUFReader(out).tensors
    return {
        tensor.name.removesuffix(".weight"): GGMLQuantizationType(tensor.tensor_type).name.lower()
        for tensor in tensors
        if "norm" not in tensor.name
    }


def ours(made: Made, mix: str) -> dict[str, str | None]:
    """The same by our rules."""
    rows = shapes(made)
    layers = [name for name in rows if name.startswith("blk.")]
    spelled = {name: f"model.layers.{name.split('.')[1]}.{(PARTS | FALCON)[name.split('.')[2]]}" for name in layers}
    chosen = resolved(MIXES[mix], list(spelled.values()), made.anatomy)
    found = {name: fitting(chosen[spelled[name]], rows[name][-1]) for name in layers}
    return found | own_tables(made, mix)


def own_tables(made: Made, scheme: str) -> dict[str, str | None]:
    """The formats of the embeddings, and of the head where it has values of its own."""
    wanted = tables("auto", scheme, made.architecture)
    if made.is_tied:
        return {"token_embd": fitting(wanted.head or "", made.width)}
    named = {"token_embd": wanted.embedding, "output": wanted.head}
    return {name: fitting(one or "", made.width) for name, one in named.items()}


@pytest.fixture(autouse=True)
def quiet() -> None:
    llama_cpp.llama_log_set(_SILENT, None)


_PURE = [name for name in sorted(GGML_FORMATS) if name[-2:] != "_k" or name == "q6_k"]
_SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)


@pytest.mark.parametrize("model", MODELS)
def test_every_matrix_gets_the_format_that_llama_cpp_gives_it(model: str, tmp_path: Path) -> None:
    made = MODELS[model]
    write(made, tmp_path / "source.gguf")
    for mix, file_type in FILE_TYPES.items():
        if mix == "q2_k_s":
            continue  # llama.cpp wants an importance matrix for it
        assert ours(made, mix) == by_llama_cpp(tmp_path / "source.gguf", tmp_path / "out.gguf", file_type), mix


@pytest.mark.parametrize("model", ["6 layers", "narrow", "tied", "narrow and tied", "Falcon"])
def test_tables_beside_one_format_are_those_of_llama_cpp(model: str, tmp_path: Path) -> None:
    made = MODELS[model]
    write(made, tmp_path / "source.gguf")
    for name in _PURE:
        file_type = getattr(LlamaFileType, f"MOSTLY_{name.upper()}")
        theirs = by_llama_cpp(tmp_path / "source.gguf", tmp_path / "out.gguf", file_type)
        assert own_tables(made, name).items() <= theirs.items(), name


def test_the_mix_that_needs_an_importance_matrix_there() -> None:
    """By llama-quant.cpp: values Q4_K with 4 queries a key or more, and the first eighth of the projections back."""
    names = [f"model.layers.{index}.{part}" for index in range(32) for part in ("self_attn.v_proj", "mlp.down_proj")]
    plain = resolved(MIXES["q2_k_s"], names, Anatomy(32))
    assert [name for name in names if plain[name] == "q4_k"] == names[1:8:2]
    grouped = resolved(MIXES["q2_k_s"], names, Anatomy(32, group=4))
    assert all(grouped[name] == "q4_k" for name in names[::2])
    assert set(plain.values()) == {"q2_k", "q4_k"}


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.layers.0.self_attn.v_proj", "v"),
        ("transformer.h.0.attn.c_attn", "v"),
        ("model.layers.0.self_attn.k_proj", "k"),
        ("transformer.h.0.attn.c_proj", "o"),
        ("transformer.h.0.mlp.c_proj", "down"),
        ("model.layers.0.self_attn.dense", "o"),
        ("model.layers.0.linear_attn.out_proj", None),
        ("backbone.layers.0.mixer.out_proj", None),
        ("model.layers.0.mlp.shared_expert.down_proj", "down"),
        ("model.layers.0.self_attn.q_proj", None),
        ("model.layers.0.mlp.gate_proj", None),
    ],
)
def test_roles_are_read_from_names(name: str, role: str | None) -> None:
    assert role_of(name) == role


def test_rows_that_no_block_divides_stay_in_high_precision() -> None:
    assert fitting("q4_k", 288) == "q5_0"
    assert fitting("q4_k", 100) is None
    assert fitting("q8_0", 100) is None
    assert fitting("int4", 100) == "int4"  # refused elsewhere, not replaced


def test_values_are_counted_among_the_layers_that_have_any() -> None:
    """A hybrid model with attention in every fourth layer: the first two of four values are the first two."""
    names = [f"model.layers.{index}.self_attn.v_proj" for index in (3, 7, 11, 15)]
    assert list(resolved(MIXES["q3_k_m"], names, Anatomy(16)).values()) == ["q5_k", "q5_k", "q4_k", "q4_k"]


def test_the_configuration_says_what_the_rules_ask() -> None:
    text = {"num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8}
    assert anatomy({"model_type": "mixtral", **text}, 32) == Anatomy(32, 8, 4, "mixtral")
    assert anatomy({"model_type": "gpt2", "n_head": 12}, 12) == Anatomy(12, 0, 1, "gpt2")
    assert anatomy({"model_type": "qwen2"}, 80).is_70b
    assert not Anatomy(80).is_70b


def test_all_formats_that_a_mix_may_need_are_named() -> None:
    for mix in MIXES:
        named = {*formats_in(mix), *formats_of_tables("auto", mix)}
        for made in MODELS.values():
            assert {one for one in ours(made, mix).values() if one} <= named
        assert named <= GGML_FORMATS
    assert formats_of_tables("keep", "q4_k_m") == ()
    assert formats_of_tables("auto", "int4") == ()


def recipe(**changes: object) -> Recipe:
    chain = [{"technique": "ptq", "scheme": "q4_k_m", "propagate": "original", **changes}]
    document = {"model": {"id": "a/b"}, "chain": chain, "target": {"format": "gguf"}}
    return recipe_from(document)


def test_a_mix_belongs_to_targets_that_hold_all_its_formats() -> None:
    asked = recipe(also=["q5_k_s"])
    check(asked)
    assert [(result.name, result.scheme) for result in results(asked)] == [("", ""), ("q5_k_s-gguf", "q5_k_s")]
    other = asked.model_copy(update={"target": Dense(), "also": (CompressedTensors(),)})
    assert [result.name for result in results(other)] == ["", "q4_k_m-compressed-tensors", "q5_k_s-dense"]
    with pytest.raises(RecipeError, match="cannot hold") as caught:
        check(other)
    assert caught.value.field == "/chain/0/scheme"


def test_tables_need_a_target_that_holds_them() -> None:
    with pytest.raises(RecipeError, match="compressed-tensors cannot hold q6_k"):
        check(recipe(scheme="int4", tables="q6_k").model_copy(update={"target": CompressedTensors()}))
    check(recipe(scheme="int4", tables="q6_k"))
    with pytest.raises(RecipeError, match="no format of tables"):
        recipe(tables="int4")


def test_a_mix_is_called_by_its_name() -> None:
    assert title_of("q4_k_m") == "GGUF Q4_K_M"
    assert title_of("int8") == "INT8 W8A8, per channel and per token"
    assert recipe().chain[0].summary == "GGUF Q4_K_M"
    with pytest.raises(RecipeError, match="known are"):
        recipe(scheme="q4_k_x")
