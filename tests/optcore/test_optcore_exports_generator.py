"""ONNX graphs of models that generate: layout, exact codes, ONNX Runtime's own results, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from fixtures.exporting import Quantize, run_of, simulated_logits
from fixtures.generating import greedy, logits_of, reference_greedy, run_graph
from fixtures.tiny_models import MakeModel
from safetensors.torch import save_file

from optcore.errors import ExportMismatch, OptError, OutOfMemory, RecipeError
from optcore.export.onnx import Onnx
from optcore.kernels.activations import fake_quantize_activation
from optcore.onnx import builder
from optcore.onnx.builder import build_graph
from optcore.onnx.generator import write_generator
from optcore.onnx.generator_fitness import check_generator
from optcore.onnx.integer_matmul import IntegerMatMul
from optcore.onnx.matmul_nbits import decode, pack
from optcore.onnx.matrices import Rows, can_pack, rows_of
from optcore.onnx.mended_graph import mend_graph
from optcore.onnx.verify_generator import verify_graph
from optcore.run import Run
from optcore.streaming.quantized import QuantizedCheckpoint


def integers(bits: int, rows: int, inputs: int, groups: int, zeros: bool) -> tuple[Any, ...]:
    """Random codes [N, K], scales [N, G] and zero points of all that the width holds."""
    random = np.random.default_rng(bits * inputs + groups)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    codes = random.integers(low, high + 1, (rows, inputs)).astype(np.int8)
    scale = random.normal(size=(rows, groups)).astype(np.float32)
    return codes, scale, random.integers(low, high + 1, (rows, groups)).astype(np.int8) if zeros else None


def product(weight: ir.Model, x: Any, folder: Path) -> Any:
    """What ONNX Runtime makes of a graph's only input."""
    ir.save(weight, folder / "one.onnx")
    return ort.InferenceSession(folder / "one.onnx", providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def value(name: str, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def test_codes_lie_as_the_operator_documents() -> None:
    """One row of 32 codes -8..7 twice: unsigned 0..15, the first of a pair in the low nibble."""
    codes = np.tile(np.arange(-8, 8, dtype=np.int8), 2)[None]
    packed = pack(codes, np.array([[0.5, 2.0]], np.float32), np.array([[1, -2]], np.int8), 4)
    assert packed.weight_NGB.tobytes().hex() == "1032547698badcfe" * 2
    assert packed.weight_NGB.shape == (1, 2, 8)
    assert packed.zero_NG is not None
    assert packed.zero_NG.tobytes().hex() == "69"  # 1 + 8 low, -2 + 8 high
    assert (packed.bits, packed.block, packed.inputs) == (4, 16, 32)


@pytest.mark.parametrize(("bits", "inputs", "groups"), [(4, 256, 2), (4, 96, 3), (4, 160, 2), (8, 300, 1), (8, 24, 1)])
@pytest.mark.parametrize("zeros", [False, True])
def test_onnx_runtime_multiplies_by_what_is_decoded(
    bits: int, inputs: int, groups: int, zeros: bool, tmp_path: Path
) -> None:
    """Multiplying by the identity gives the weight: the kernel, our decoder and the definition agree."""
    codes, scale, zero = integers(bits, 7, inputs, groups, zeros)
    packed = pack(codes, scale, zero, bits)
    lifted = np.zeros_like(scale) if zero is None else zero.astype(np.float32)
    scale_NK, zero_NK = (
        np.repeat(part, packed.block if groups > 1 else inputs, 1)[:, :inputs] for part in (scale, lifted)
    )
    defined = (codes.astype(np.float32) - zero_NK) * scale_NK
    assert np.array_equal(decode(packed), defined)

    parts = {"w": packed.weight_NGB, "s": packed.scale_NG} | ({} if zero is None else {"z": packed.zero_NG})
    constants = [ir.Value(name=name, const_value=ir.Tensor(part, name=name)) for name, part in parts.items()]
    x, y = value("x", inputs, inputs), value("y", inputs, 7)
    attributes = {"K": inputs, "N": 7, "bits": bits, "block_size": packed.block}
    kept = [ir.AttrInt64(name, number) for name, number in attributes.items()]
    node = ir.Node("com.microsoft", "MatMulNBits", [x, *constants], kept, outputs=[y])
    imports = {"": 22, "com.microsoft": 1}
    graph = ir.Graph([x], [y], nodes=[node], initializers=constants, opset_imports=imports, name="one")
    got = product(ir.Model(graph, ir_version=10), np.eye(inputs, dtype=np.float32), tmp_path)
    np.testing.assert_allclose(got.T, defined, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scheme", ["int8", "int8_static"])
def test_rounded_inputs_multiply_as_simulated(scheme: str, quantized: Quantize, tmp_path: Path) -> None:
    """Against float64 products of the simulated input and weight; one token is all zeros."""
    state = QuantizedCheckpoint(quantized(scheme))
    name = state.description.modules[0]
    rows, inputs = state.weight(name).shape
    x, y = value("x", 2, "T", inputs), value("y", 2, "T", rows)
    weight = ir.Value(name="w", shape=ir.Shape([inputs, rows]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.Node("", "MatMul", [x, weight], outputs=[y], name="/one/MatMul")
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": 22}, name="one")
    IntegerMatMul(graph, state).replace(node, (Rows(name),))
    given = np.random.default_rng(3).normal(size=(2, 40, inputs)).astype(np.float32)
    given[0, 0] = 0
    got = product(ir.Model(graph, ir_version=10), given, tmp_path)
    args = state.scheme(name).activations
    assert args
    rounded = fake_quantize_activation(torch.from_numpy(given), args, state.input_scale(name)).double()
    np.testing.assert_allclose(got, (rounded @ state.weight(name).double().T).numpy(), rtol=0, atol=2e-6)


class Written(NamedTuple):
    """An export, and what it was made of."""

    checkpoint: Path
    run: Run

    @property
    def graph(self) -> Path:
        return self.run.out / "model.onnx"


@pytest.fixture(scope="module")
def mixed(quantized: Quantize, stdlib_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A layer left alone, and two formats in the others, one with zero points: the builder takes seconds a model."""
    overrides = [
        {"modules": r"re:.*layers\.0\..*", "scheme": None},
        {"modules": r"re:.*down_proj", "scheme": "int8_w8a16"},
    ]
    checkpoint = quantized("int4_asym_g32", overrides=overrides)
    run = run_of(stdlib_model, checkpoint, tmp_path_factory.mktemp("mixed") / "out")
    write_generator(run, Onnx())
    return Written(checkpoint, run)


def test_onnx_runtime_computes_what_was_simulated(mixed: Written) -> None:
    """Logits of the graph against our simulation of the quantized model, both in float32."""
    tokens = np.random.default_rng(1).integers(3, 2000, (1, 32))
    simulated = simulated_logits(mixed.checkpoint, torch.from_numpy(tokens)).float().detach().numpy()
    assert np.abs(run_graph(mixed.run.out, tokens) - simulated).max() < 1e-4


def test_plain_and_quantized_matrices_lie_side_by_side(mixed: Written) -> None:
    """Each in its own node, with the attributes of its format."""
    nodes = {node.name: node for node in ir.load(mixed.graph).graph if node.op_type.startswith("MatMul")}
    assert nodes["/model/layers.0/mlp/down_proj/MatMul"].op_type == "MatMul"
    expected = {"attn/qkv_proj": (4, 32, 5), "mlp/up_proj": (4, 32, 4), "mlp/down_proj": (8, 256, 3)}
    for name, (bits, block, inputs) in expected.items():
        node = nodes[f"/model/layers.1/{name}/MatMul"]
        assert node.op_type == "MatMulNBits"
        assert (node.attributes["bits"].as_int(), node.attributes["block_size"].as_int()) == (bits, block)
        assert len(node.inputs) == min(inputs, 4)


def test_the_folder_has_what_engines_read(mixed: Written) -> None:
    """Settings name no execution provider; the model's own configuration stays."""
    kept = {path.name for path in mixed.run.out.iterdir()}
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "config.json", "tokenizer.json"} <= kept
    settings = json.loads((mixed.run.out / "genai_config.json").read_text())["model"]
    assert settings["decoder"]["session_options"]["provider_options"] == []
    assert settings["vocab_size"] == json.loads((mixed.run.out / "config.json").read_text())["vocab_size"]


@pytest.mark.parametrize(
    "name",
    ["layers.3.mlp.up_proj.MatMul.qweight", "layers.2.attn.o_proj.MatMul.scales", "layers.0.mlp.up_proj.MatMul.weight"],
)
def test_a_changed_bit_is_found(name: str, mixed: Written, tmp_path: Path) -> None:
    """Of a code, of a scale, and of a matrix that nothing quantized."""
    held = ir.load(mixed.graph).graph.initializers[f"model.{name}"].const_value
    spoiled = bytearray(mixed.graph.with_suffix(".onnx.data").read_bytes())
    spoiled[held.offset + 2] ^= 0x10
    (tmp_path / "model.onnx.data").write_bytes(spoiled)
    shutil.copy(mixed.graph, tmp_path)
    rounded, state = mixed.run.scratch / "rounded", QuantizedCheckpoint(mixed.checkpoint)
    with pytest.raises(ExportMismatch, match=r"model\.layers"):
        verify_graph(mixed.run, tmp_path / "model.onnx", rounded, state)


def test_a_plain_model_generates_the_same_tokens(stdlib_model: Path, tmp_path: Path) -> None:
    """Greedy, in ONNX Runtime GenAI and in transformers."""
    check_generator(stdlib_model, "/target")
    write_generator(run_of(stdlib_model, stdlib_model, tmp_path / "out"), Onnx())
    prompt = [17, 300, 45, 9, 1200]
    assert greedy(tmp_path / "out", prompt, 16) == reference_greedy(stdlib_model, prompt, 16)
    tokens = np.array([prompt])
    assert np.abs(run_graph(tmp_path / "out", tokens) - logits_of(stdlib_model, tokens)).max() < 1e-4


@pytest.mark.parametrize(
    ("family", "more", "reason"),
    [
        ("Bloom", {}, "it knows LlamaForCausalLM"),
        ("Olmo", {}, "10 % off"),
        ("Mistral", {}, "a window of 16 of 512 tokens"),
        ("Phi3", {}, "beyond those of the pre-training"),
        ("Qwen3", {"rope_parameters": {"rope_type": "dynamic"}}, "not dynamic"),
        ("Llama", {"architectures": None}, "without `architectures`"),
    ],
)
def test_what_the_builder_writes_wrong_is_refused(
    family: str, more: dict[str, object], reason: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    """Before any work, with the nearest that works."""
    config = json.loads((tiny_model(family) / "config.json").read_text()) | more
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match=reason) as error:
        check_generator(tmp_path, "/also/1")
    assert error.value.field == "/also/1/format"
    assert "gguf" in error.value.remedy


def test_what_the_builder_says_at_its_end_is_passed_on(stdlib_model: Path, tmp_path: Path) -> None:
    """It fails on a folder without a configuration."""
    run = run_of(stdlib_model, stdlib_model, tmp_path / "out")
    (tmp_path / "model").mkdir()
    shutil.copy(stdlib_model / "model.safetensors", tmp_path / "model")
    with pytest.raises(OptError, match="the model builder ended with status 1: "):
        build_graph(run, tmp_path / "model", "fp32", packs=True)


def test_a_machine_without_room_is_said_first(
    stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The builder holds the whole model."""
    monkeypatch.setattr(builder, "_ROOM", 10**9)
    with pytest.raises(OutOfMemory, match="holds the whole model"):
        build_graph(run_of(stdlib_model, stdlib_model, tmp_path / "out"), stdlib_model, "fp32", packs=True)


def test_nodes_are_found_in_the_checkpoint() -> None:
    """Put together, taken apart, and neither."""
    known = {f"model.layers.0.self_attn.{name}_proj" for name in "qkvo"} | {
        "model.layers.0.mlp.gate_up_proj",
        "lm_head",
    }
    qkv = rows_of("/model/layers.0/attn/qkv_proj/MatMul", known)
    assert [rows.module[-6:] for rows in qkv] == ["q_proj", "k_proj", "v_proj"]
    (up,) = rows_of("/model/layers.0/mlp/up_proj/MatMul", known)
    assert (up.module, up.of(10)) == ("model.layers.0.mlp.gate_up_proj", slice(5, 10))
    assert rows_of("/lm_head/MatMul", known) == (Rows("lm_head"),)
    assert rows_of("/model/layers.1/attn/qkv_proj/MatMul", known) == ()
    assert can_pack({"a.q_proj": "int4", "a.k_proj": "int4", "a.v_proj": "int4", "a.o_proj": "int8"})
    assert not can_pack({"a.q_proj": "int4", "a.k_proj": "int4"})


def test_what_the_builder_rounds_is_put_right(tmp_path: Path) -> None:
    """Gemma's 1 + w as bfloat16 adds it up, and its scale of two decimals; the largest tensors stay where they are."""
    norms_K = {name: torch.full((8,), 0.0123, dtype=torch.bfloat16) for name in ("model.norm", "model.layers.0.q_norm")}
    save_file({f"{name}.weight": norm_K for name, norm_K in norms_K.items()}, tmp_path / "model.safetensors")
    _configure(tmp_path, architectures=["GemmaForCausalLM"], hidden_size=200)
    x, scaled = value("x", "T", 8), value("/model/embed_tokens/Mul/output_0", "T", 8)
    names = ("model.layers.1.final_norm_layernorm.weight", "model.layers.0.q_norm.weight")
    built = [ir.Tensor((norms_K["model.norm"] + 1).float().numpy(), name=name) for name in names]
    constants = [ir.Value(name=one.name, const_value=one) for one in (*built, ir.Tensor(np.float32(14.14), name="s"))]
    outputs = [value(f"y{place}", "T", 8) for place in range(2)]
    nodes = [ir.Node("", "Mul", [x, constants[2]], outputs=[scaled])]
    nodes += [ir.Node("", "Mul", [scaled, constants[place]], outputs=[outputs[place]]) for place in range(2)]
    imports = {"": 22}
    graph = ir.Graph([x], outputs, nodes=nodes, initializers=constants, opset_imports=imports, name="one")
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "model.onnx")
    mend_graph(tmp_path / "model.onnx", tmp_path)
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    expected = np.sqrt(200.0) * (1 + norms_K["model.norm"].double().numpy())
    for got in session.run(None, {"x": np.ones((1, 8), np.float32)}):
        np.testing.assert_allclose(got[0], expected, rtol=2e-7)


def test_an_epsilon_is_the_configurations_own(tmp_path: Path) -> None:
    _configure(tmp_path, architectures=["PhiForCausalLM"], layer_norm_eps=1e-5)
    x, y = value("x", "T", 8), value("y", "T", 8)
    scale = ir.Value(name="w", const_value=ir.Tensor(np.ones(8, np.float32), name="w"))
    node = ir.Node("", "LayerNormalization", [x, scale], [ir.AttrFloat32("epsilon", 1e-6)], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[node], initializers=[scale], opset_imports={"": 22}, name="one")
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "model.onnx")
    mend_graph(tmp_path / "model.onnx", tmp_path)
    (mended,) = ir.load(tmp_path / "model.onnx").graph
    assert mended.attributes["epsilon"].as_float() == np.float32(1e-5)


def _configure(folder: Path, **config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))
