"""Puts right the small numbers that the builder rounds, or leaves at a default, in the graphs of some families.

Norms of Gemma multiply by 1 + w: the builder adds that up in the checkpoint's type, where bfloat16 keeps 8 bits of it,
and rounds the scale of the embeddings to two decimals. Norms of Phi it gives another epsilon than the configuration.
Together that moved logits by 2e-3 to 6e-3 of their norm; what is left is float32's own.
"""

import json
from math import sqrt
from pathlib import Path

import numpy as np
import onnx_ir as ir

from optcore.export.raw_reader import RawFiles
from optcore.onnx.initializers import constant

_SCALED = "/model/embed_tokens/Mul/output_0"
_FINAL = "final_norm_layernorm.weight"


def mend_graph(path: Path, checkpoint: Path) -> None:
    """Correct the graph in its place, by the checkpoint that it was built of. Its large tensors are not touched."""
    config = json.loads((checkpoint / "config.json").read_text())
    family = config["architectures"][0]
    if family not in ("PhiForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM"):
        return
    model = ir.load(path)
    if family == "PhiForCausalLM":
        _set_epsilon(model.graph, config["layer_norm_eps"])
    else:
        _scale_exactly(model.graph, config["hidden_size"])
        _add_exactly(model.graph, RawFiles(checkpoint))
    ir.save(model, path)


def _set_epsilon(graph: ir.Graph, epsilon: float) -> None:
    for node in graph:
        if node.op_type.endswith("LayerNormalization"):
            node.attributes.add(ir.AttrFloat32("epsilon", epsilon))


def _scale_exactly(graph: ir.Graph, hidden_size: int) -> None:
    node = next(node for node in graph if node.outputs[0].name == _SCALED)
    type_ = node.outputs[0].dtype or ir.DataType.FLOAT
    scale = constant(graph, "/model/embed_tokens/scale", np.array(sqrt(hidden_size), type_.numpy()))
    node.replace_input_with(1, scale)


def _add_exactly(graph: ir.Graph, files: RawFiles) -> None:
    for name, value in graph.initializers.items():
        if name.endswith("norm.weight"):
            stored = "model.norm.weight" if name.endswith(_FINAL) else name
            norm_K = (1 + files.floats(stored)).astype(value.const_value.dtype.numpy())
            value.const_value = ir.Tensor(norm_K, name=name)
