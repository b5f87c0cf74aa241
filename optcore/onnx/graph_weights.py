"""Quantized weights in a graph, found and decoded by numpy alone.

Legend: N outputs, K inputs. A layer's nodes say in their metadata whose they are. Their operators, and what they mean:
https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from optcore.errors import ExportMismatch
from optcore.export.layout_writer import EXACT, compare
from optcore.onnx.rounded_linears import MODULE

if TYPE_CHECKING:
    from optcore.export.raw_reader import Array
    from optcore.streaming.quantized import QuantizedCheckpoint


class GraphLinear(NamedTuple):
    """A quantized linear layer as it lies in a graph."""

    weight_NK: "Array"
    """What its codes stand for, float32."""
    input_scale: float | None
    """The step that its input is rounded in; None where it is not rounded, 1 where each token has its own."""


def graph_linears(path: Path) -> dict[str, GraphLinear]:
    """Every quantized linear layer of a graph, by its name in the checkpoint. Raises `ExportMismatch`."""
    graph = onnx.load(path).graph
    values = {one.name: one for one in graph.initializer}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    found: dict[str, GraphLinear] = {}
    for node in graph.node:
        if (module := _module_of(node)) and node.input[0] in values:
            found[module] = _linear(node, users, values, module)
    return found


def check_weights(path: Path, state: "QuantizedCheckpoint") -> None:
    """Raises `ExportMismatch` unless the graph holds every quantized layer's weight and input scale, bit for bit."""
    found = graph_linears(path)
    if missing := set(state.description.modules) ^ found.keys():
        raise ExportMismatch(f"the graph and the checkpoint differ in layers: {', '.join(sorted(missing)[:5])}")
    for name, linear in found.items():
        compare(name, linear.weight_NK, state.weight(name), EXACT)
        stored = state.input_scale(name)
        args = state.scheme(name).activations
        expected = None if args is None else 1.0 if stored is None else float(stored)
        if linear.input_scale != expected:
            raise ExportMismatch(f"{name} rounds its input by {linear.input_scale}, not by {expected}")


def _linear(node: Any, users: dict[str, list[Any]], values: dict[str, Any], module: str) -> GraphLinear:
    """The layer of a node whose first input is its codes [K, N]."""
    codes_KN = numpy_helper.to_array(values[node.input[0]])
    if node.op_type == "DequantizeLinear":
        scale_N, zero_N = (numpy_helper.to_array(values[name]) for name in node.input[1:3])
        axis = next((one.i for one in node.attribute if one.name == "axis"), None)
        if axis != 1 or zero_N.any():
            raise ExportMismatch(f"{module} is not dequantized by column around zero")
        return GraphLinear(_decoded(codes_KN, scale_N), _input_scale(node, users, values, module))
    (product,) = users[node.output[0]]
    scale_N = numpy_helper.to_array(values[next(name for name in product.input if name in values)])
    return GraphLinear(_decoded(codes_KN, scale_N), None)


def _decoded(codes_KN: "Array", scale_N: "Array") -> "Array":
    return np.ascontiguousarray((codes_KN.astype(np.float32) * scale_N).T)


def _input_scale(node: Any, users: dict[str, list[Any]], values: dict[str, Any], module: str) -> float:
    """The scale of what the weight is multiplied with."""
    (product,) = users[node.output[0]]
    other = product.input[1 - list(product.input).index(node.output[0])]
    rounding = [
        one
        for users_of in users.values()
        for one in users_of
        if one.op_type == "DequantizeLinear" and one.output[0] == other
    ]
    if product.op_type != "MatMul" or not rounding:
        raise ExportMismatch(f"the input of {module} is not rounded")
    return float(numpy_helper.to_array(values[rounding[0].input[1]]))


def _module_of(node: Any) -> str | None:
    return next((one.value for one in node.metadata_props if one.key == MODULE), None)
