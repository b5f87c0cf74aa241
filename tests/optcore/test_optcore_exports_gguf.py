"""GGUF files: llama.cpp computes what transformers and our simulation do; what has no place in one is refused."""

import json
import shutil
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from fixtures.exporting import Quantize, described, run_of, simulated_logits
from fixtures.llama import TOKENS, gap_to_simulation, logits, opened, types_of, unpacked, write
from fixtures.tiny_models import EXTRAS, MakeModel, make_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from optcore.coverage import coverage
from optcore.errors import ExportMismatch, RecipeError
from optcore.events import AnyEvent, Notice
from optcore.export import Gguf
from optcore.gguf.architectures import ARCHITECTURES
from optcore.gguf.contents import Contents
from optcore.gguf.fitness import check_model
from optcore.gguf.layout import Entry, lay_out
from optcore.gguf.verify import verify
from optcore.gguf.weights import Weights
from optcore.gguf.write import file_type
from optcore.references import Calibration
from optcore.sizes import weight_bytes

pytest.importorskip("llama_cpp", reason="the peer that runs the file")

SHARP: dict[str, Any] = {"initializer_range": 0.15}
"""Weights large enough that it matters where a token stands and what it attends to."""
STRETCHED = {"rope_theta": 500_000.0, "factor": 8.0, "original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **STRETCHED}
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {"attention_bias": True, "mlp_bias": True}),
    ("Llama", {"rope_parameters": LLAMA3}),
    ("Llama", {"rope_parameters": {"rope_type": "linear", **STRETCHED}}),
    ("Mistral", {"sliding_window": None}),
    ("Mixtral", {}),
    ("Qwen2", {}),
    ("Qwen2", {"rope_parameters": {"rope_type": "yarn", **STRETCHED}}),
    ("Qwen2Moe", {}),
    ("Qwen3", {}),
    ("Qwen3Moe", {"norm_topk_prob": True}),
    ("Gemma2", {"query_pre_attn_scalar": 32}),
    ("Gemma3Text", {"query_pre_attn_scalar": 32, "num_hidden_layers": 6}),
    ("Phi3", {}),
    ("Olmo2", {}),
]


def transformers_logits(folder: Path) -> np.ndarray[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        found: np.ndarray[Any, Any] = model(TOKENS).logits[0].numpy()
    return found


def keys_of(path: Path) -> Callable[[str], Any]:
    reader = gguf.GGUFReader(path)
    return lambda name: reader.fields[name].contents()


@pytest.mark.parametrize(("family", "extras"), FAMILIES, ids=[f"{f}-{'-'.join(x)}" for f, x in FAMILIES])
def test_llama_computes_what_transformers_does(
    family: str, extras: dict[str, Any], stdlib_model: Path, tmp_path: Path
) -> None:
    """Within float32; llama.cpp looks GELU up in a table of float16, whose roundoff is 2^-11."""
    folder = make_model(family, EXTRAS[family] | SHARP | extras, tmp_path, stdlib_model)
    check_model(folder, "text-generation", "/target")
    expected = transformers_logits(folder)
    difference = np.abs(logits(write(folder, tmp_path / "out"), TOKENS[0].tolist()) - expected).max()
    print(f"{family}: largest difference {difference:.2g} of logits up to {np.abs(expected).max():.3g}")
    assert difference <= (2.0**-11 if "Gemma" in family else 2.0**-17) * np.abs(expected).max()


def test_every_architecture_is_tried() -> None:
    named = {f"{family.removesuffix('Text')}ForCausalLM" for family, _ in FAMILIES}
    assert named == set(ARCHITECTURES)


def test_the_shipped_model_in_all_plain_types(stdlib_model: Path, tmp_path: Path) -> None:
    expected = transformers_logits(stdlib_model)
    for plain, bound in (("f32", 1e-3), ("f16", 0.02), ("bf16", 0.2)):
        path = write(stdlib_model, tmp_path / plain, plain)
        difference = np.abs(logits(path, TOKENS[0].tolist()) - expected).max()
        print(f"{plain}: largest difference {difference:.2g} of logits up to {np.abs(expected).max():.3g}")
        assert difference <= bound  # activations are rounded to the type of the matrix
        types = types_of(path)
        assert "output.weight" not in types  # the head is the table of tokens
        assert {types["token_embd.weight"], types["blk.0.ffn_up.weight"]} == {plain.upper()}
        assert {types["output_norm.weight"], types["blk.0.attn_norm.weight"]} == {"F32"}
    assert keys_of(path)("general.file_type") == gguf.LlamaFileType.MOSTLY_BF16
    assert (tmp_path / "f16" / "config.json").read_bytes() == (stdlib_model / "config.json").read_bytes()


def test_llama_reads_text_as_the_shipped_tokenizer_does(stdlib_model: Path, tmp_path: Path) -> None:
    text = (stdlib_model.parent / "train_stdlib.py").read_text()[:3000]
    text += "\n\t日本語 naïve 'll we'RE 1234567  \r\n\n end<|endoftext|>def"
    model, tokenizer = opened(write(stdlib_model, tmp_path, "f16")), AutoTokenizer.from_pretrained(stdlib_model)
    assert model.tokenize(text.encode(), add_bos=True, special=True) == tokenizer(text)["input_ids"]


@pytest.mark.parametrize(("scheme", "type_"), [("q8_0", "Q8_0"), ("nvfp4_w4a16", "NVFP4")])
def test_llama_computes_what_was_simulated(scheme: str, type_: str, quantized: Quantize, tmp_path: Path) -> None:
    assert gap_to_simulation(quantized(scheme), type_, tmp_path) <= 1e-3


def test_quantized_experts_are_one_tensor(stdlib_model: Path, tmp_path: Path) -> None:
    from fixtures.exporting import plain

    folder = make_model("Mixtral", EXTRAS["Mixtral"] | SHARP, tmp_path / "model", stdlib_model)
    plain("int4_g32").apply(run_of(folder, folder, tmp_path / "quantized"))
    path = write(tmp_path / "quantized", tmp_path / "out")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert tensors["blk.1.ffn_gate_exps.weight"].shape.tolist() == [128, 256, 4]
    assert tensors["blk.1.ffn_gate_exps.weight"].tensor_type.name == "Q4_0"
    assert tensors["blk.1.ffn_gate_inp.weight"].tensor_type.name == "F32"
    simulated = simulated_logits(tmp_path / "quantized", TOKENS)[0].float().numpy()
    found = logits(unpacked(path, tmp_path / "plain.gguf"), TOKENS[0].tolist())
    assert np.abs(found - simulated).max() <= 1e-4


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe", "Qwen3Moe"])
def test_fused_experts_are_taken_apart(family: str, stdlib_model: Path, tmp_path: Path) -> None:
    """The same file from a checkpoint with all experts of a layer in one tensor, which transformers saves too."""
    extras = EXTRAS[family] | {"norm_topk_prob": family == "Qwen3Moe"}
    folder = make_model(family, extras, tmp_path / "model", stdlib_model)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    shutil.copytree(folder, tmp_path / "fused", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    assert "model.layers.1.mlp.experts.gate_up_proj" in load_file(tmp_path / "fused" / "model.safetensors")
    of = {}
    for checkpoint in (folder, tmp_path / "fused"):
        path = write(checkpoint, tmp_path / f"{checkpoint.name}-out", "f16")
        of[checkpoint.name] = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    assert of["fused"].keys() == of["model"].keys()
    for name, data in of["model"].items():
        np.testing.assert_array_equal(of["fused"][name], data)


def test_fused_experts_that_were_not_quantized_are_taken_apart(stdlib_model: Path, tmp_path: Path) -> None:
    from fixtures.exporting import plain

    extras = EXTRAS["Qwen3Moe"] | {"norm_topk_prob": True}
    folder = make_model("Qwen3Moe", extras, tmp_path / "model", stdlib_model)
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, save_original_format=False)
    plain("q8_0", ignore=[r"re:.*layers\.0\.mlp\.experts.*"]).apply(run_of(folder, folder, tmp_path / "quantized"))
    types = types_of(write(tmp_path / "quantized", tmp_path / "out", "bf16"))
    assert [types[f"blk.{layer}.ffn_up_exps.weight"] for layer in (0, 1)] == ["BF16", "Q8_0"]


def test_a_damaged_file_is_noticed(quantized: Quantize, tmp_path: Path) -> None:
    """One bit of one code of a row that was moved, of a norm, and of NVFP4's second scale."""
    folder = quantized("nvfp4_w4a16")
    path = write(folder, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    contents = Contents(Weights(folder), config, ARCHITECTURES["LlamaForCausalLM"])
    names = ("blk.1.attn_q.weight", "blk.0.attn_norm.weight", "blk.2.ffn_up.scale")
    laid_out = lay_out(contents.weights, config, contents.architecture, "f32")
    entries, run = [entry for entry in laid_out if entry.name in names], run_of(folder, folder, tmp_path)
    verify(run, path, entries, contents)
    places = {tensor.name: int(tensor.data_offset) + 20 for tensor in gguf.GGUFReader(path).tensors}
    places["blk.2.ffn_up.scale"] -= 17
    for name in names:
        damaged = tmp_path / "damaged.gguf"
        octets = bytearray(path.read_bytes())
        octets[places[name]] ^= 1
        damaged.write_bytes(octets)
        with pytest.raises(ExportMismatch, match=r"decodes to|second scales"):
            verify(run, damaged, entries, contents)
    with pytest.raises(ExportMismatch, match="not in model"):
        verify(run, path, [*entries, Entry("blk.0.more.weight", "F32", (1,), ("more",))], contents)


@pytest.mark.parametrize("type_", ["F16", "BF16"])
def test_a_table_is_compared_a_few_rows_at_a_time(type_: str, tmp_path: Path) -> None:
    """numpy's peak is far below a float64 copy of the table, 32 MiB; and a wrong value is told by its row."""
    table = torch.randn((16384, 256), generator=torch.Generator().manual_seed(2))
    save_file({"table": table}, tmp_path / "model.safetensors")
    contents = Contents(Weights(tmp_path), {"num_attention_heads": 1}, ARCHITECTURES["Qwen2ForCausalLM"])
    entry, path = Entry("token_embd.weight", type_, (16384, 256), ("table",)), tmp_path / "model.gguf"
    with closing(gguf.GGUFWriter(path, "qwen2")) as writer:
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.nbytes, entry.ggml_type)
        for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_ti_data_to_file):
            write_part()
        writer.write_tensor_data(contents.written(entry))
    run = run_of(tmp_path, tmp_path, tmp_path / "out")
    tracemalloc.start()
    verify(run, path, [entry], contents)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{type_}: numpy held {peak / 2**20:.1f} MiB")
    assert peak < 16 * 2**20
    (tensor,) = gguf.GGUFReader(path).tensors
    with path.open("r+b") as file:
        file.seek(int(tensor.data_offset) + 2 * (256 * 2050 + 7))
        file.write(b"\x10\x10")
    with pytest.raises(ExportMismatch, match=r"table\[2048:3072\] decodes to .* at \[2, 7\], .* 1 of 262144 values"):
        verify(run, path, [entry], contents)


def test_rows_of_queries_and_keys_alternate_between_halves(tiny_model: MakeModel, tmp_path: Path) -> None:
    """By the rule of the format: in the file, row 2 i of a head is its row i, and row 2 i + 1 its row i + half."""
    folder = tiny_model("Llama")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(write(folder, tmp_path)).tensors}
    source = load_file(folder / "model.safetensors")["model.layers.1.self_attn.k_proj.weight"].float().numpy()
    found = tensors["blk.1.attn_k.weight"].data
    for head in range(2):
        for row in range(16):
            np.testing.assert_array_equal(found[32 * head + 2 * row], source[32 * head + row])
            np.testing.assert_array_equal(found[32 * head + 2 * row + 1], source[32 * head + row + 16])


def test_importance_becomes_an_imatrix(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Sums of squares and counts by llama.cpp's names, experts in a tensor, zero where no token came by."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("Mixtral"), folder)
    torch.manual_seed(1)
    modules = {"model.layers.1.self_attn.q_proj": 128, "model.layers.0.block_sparse_moe.experts.2.w2": 64}
    squares = {name: torch.rand(128 if "attn" in name else 256) for name in modules}
    measured = {f"{name}.mean_square": square for name, square in squares.items()}
    counts = {f"{name}.tokens": torch.tensor(tokens) for name, tokens in modules.items()}
    save_file(measured | counts, folder / "importance.safetensors")
    write(folder, tmp_path / "out")
    reader = gguf.GGUFReader(tmp_path / "out" / "imatrix.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["python-stdlib"]
    assert [reader.fields[f"imatrix.chunk_{what}"].contents() for what in ("count", "size")] == [2, 64]
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert len(tensors) == 4
    queries = squares["model.layers.1.self_attn.q_proj"].numpy()
    np.testing.assert_array_equal(tensors["blk.1.attn_q.weight.in_sum2"], queries[None] * np.float32(128))
    assert tensors["blk.1.attn_q.weight.counts"].tolist() == [[128.0]]
    assert tensors["blk.0.ffn_down_exps.weight.counts"].tolist() == [[0.0], [0.0], [64.0], [0.0]]
    sums = tensors["blk.0.ffn_down_exps.weight.in_sum2"]
    np.testing.assert_array_equal(sums[2], squares["model.layers.0.block_sparse_moe.experts.2.w2"].numpy() * 64)
    assert not sums[[0, 1, 3]].any()


def test_an_imatrix_names_a_file_without_its_folder(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("Qwen3"), folder)
    name = "model.layers.0.self_attn.q_proj"
    measured = {f"{name}.mean_square": torch.ones(128), f"{name}.tokens": torch.tensor(8)}
    save_file(measured, folder / "importance.safetensors")
    run = run_of(folder, folder, tmp_path / "out", calibration=Calibration(path="/data/of-somebody/letters.txt"))
    Gguf().write(run)
    assert keys_of(tmp_path / "out" / "imatrix.gguf")("imatrix.datasets") == ["letters.txt"]


def test_no_imatrix_without_importance(tiny_model: MakeModel, tmp_path: Path) -> None:
    write(tiny_model("Qwen3"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.gguf"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["BloomForCausalLM"]}, "BloomForCausalLM is not written as GGUF"),
        ({"hidden_act": "relu"}, "hidden_act silu, and the model has relu"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope' are not written"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None}, "'dynamic' are not written"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "only a part of each head"),
        ({"rope_parameters": None, "partial_rotary_factor": 0.5}, "only a part of each head"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 2.0}}, "attention factor"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "norm_topk_prob True, and the model has False"),
        ({"architectures": ["Gemma2ForCausalLM"], "num_hidden_layers": 2}, "the root of 64, and the model has 256"),
        ({"architectures": ["Gemma2ForCausalLM"], "layer_types": ["full_attention"] * 6}, "every 2th layer"),
    ],
)
def test_what_llama_would_compute_otherwise_is_refused(
    changes: dict[str, Any], message: str, stdlib_model: Path, tmp_path: Path
) -> None:
    """Before any work, by the configuration, with what is written and what to choose instead."""
    shutil.copy(stdlib_model / "tokenizer.json", tmp_path)
    config = json.loads((stdlib_model / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match=message) as raised:
        check_model(tmp_path, "text-generation", "/target")
    assert (raised.value.field, "compressed-tensors" in raised.value.remedy) == ("/target/format", True)


def test_what_a_file_cannot_say_is_refused(tiny_model: MakeModel, quantized: Quantize, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("Llama"), folder)
    (folder / "conditional.json").write_text("{}")
    for check in (lambda: check_model(folder, "text-generation", "/target"), lambda: write(folder, tmp_path / "a")):
        with pytest.raises(RecipeError, match=r"as conditional\.json says"):
            check()
    (folder / "conditional.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    up = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {up: tensors[up][:128].clone()}, folder / "model.safetensors")
    with pytest.raises(RecipeError, match=r"layer 1 differs from layer 0 in ffn_up\.weight"):
        write(folder, tmp_path / "b")
    save_file(tensors | {"model.layers.0.mlp.fourth.weight": tensors[up].clone()}, folder / "model.safetensors")
    with pytest.raises(RecipeError, match=r"no tensor like model\.layers\.0\.mlp\.fourth\.weight"):
        write(folder, tmp_path / "c")
    save_file(tensors | {up: tensors[up] * 1e7}, folder / "model.safetensors")
    with pytest.raises(RecipeError, match="float16 ends at 65504") as raised:
        write(folder, tmp_path / "d", "f16")
    assert raised.value.field == "/target/plain"


def test_an_ignored_window_is_said(tiny_model: MakeModel, tmp_path: Path) -> None:
    events: list[AnyEvent] = []
    write(tiny_model("Mistral"), tmp_path, events=events)
    (notice,) = [event.message for event in events if isinstance(event, Notice)]
    assert "to the last 16" in notice


def test_the_name_of_the_whole_is_that_of_most_weights() -> None:
    def named(*types: str) -> str:
        sizes = {"Q4_K": 900, "Q6_K": 100, "F16": 5000, "F32": 1, "Q4_0": 10, "MXFP4": 10}
        return file_type([Entry(type_, type_, (sizes[type_], 256), ()) for type_ in types]).name

    assert named("Q4_K", "Q6_K", "F16", "F32") == "MOSTLY_Q4_K_M"
    assert named("Q4_K", "F16") == "MOSTLY_Q4_K_S"
    assert named("Q6_K") == "MOSTLY_Q6_K"
    assert named("Q4_0", "F16") == "MOSTLY_Q4_0"
    assert named("MXFP4") == "MOSTLY_MXFP4_MOE"
    assert named("F32") == "ALL_F32"


def test_a_quantized_state_is_what_its_description_says(quantized: Quantize) -> None:
    """Shapes come from headers, and are those of the codes."""
    for scheme in ("int4_g32", "q8_0", "nvfp4_w4a16"):
        weights = Weights(quantized(scheme))
        for module in described(quantized(scheme)).modules[:3]:
            codes, _ = weights.codes(f"{module}.weight")
            assert weights.scheme(f"{module}.weight") == scheme
            if scheme != "nvfp4_w4a16":  # FP4 codes are packed, its scales say how many there are
                assert weights.shape(f"{module}.weight") == tuple(codes.shape)
        assert "model.norm.weight" in weights.names


def test_sizes_of_a_file_are_told(quantized: Quantize, stdlib_model: Path, tmp_path: Path) -> None:
    """Bytes are the file's own; what was quantized is counted in the codes that it was made from."""
    path = write(quantized("q8_0"), tmp_path, "f16")
    assert weight_bytes(tmp_path) == path.stat().st_size
    assert weight_bytes(stdlib_model) == (stdlib_model / "model.safetensors").stat().st_size
    found = coverage(described(quantized("q8_0")), quantized("q8_0"), tmp_path)
    (down,) = [row for row in found.classes if row.name == "model.layers.*.mlp.down_proj"]
    assert (down.parameters, down.quantized, down.result_bytes) == (
        6 * 256 * 768,
        6 * 256 * 768,
        6 * 256 * 768 * 34 // 32,
    )
