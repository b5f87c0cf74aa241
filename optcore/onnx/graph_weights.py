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
    input_scales: frozenset[float]
    """The step that its input is rounded in, 1 where each token has its own; none where it is not rounded. Of layers
    with the same codes and scales the graph has one, with the steps of all."""


def graph_linears(path: Path) -> dict[str, GraphLinear]:
    """Every quantized linear layer of a graph, by its name in the checkpoint. Raises `ExportMismatch`."""
    graph = onnx.load(path).graph
    values = {one.name: one for one in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return {
        module: _linear(node, users, makers, values, module)
        for node in graph.node
        if (module := _module_of(node)) and node.input[0] in values
    }


def check_weights(path: Path, state: "QuantizedCheckpoint") -> None:
    """Raises `ExportMismatch` unless the graph holds every quantized layer's weight and input scale, bit for bit."""
    found = graph_linears(path)
    if unknown := found.keys() - set(state.description.modules):
        raise ExportMismatch(f"the graph has layers that the checkpoint lacks: {', '.join(sorted(unknown)[:5])}")
    for name in state.description.modules:
        weight = state.weight(name)
        linear = found.get(name) or _twin(weight.numpy(), found, name)
        compare(name, linear.weight_NK, weight, EXACT)
        if (step := _step(state, name)) not in linear.input_scales and (step or linear.input_scales):
            raise ExportMismatch(f"{name} rounds its input by {sorted(linear.input_scales)}, not by {step}")


def _step(state: "QuantizedCheckpoint", name: str) -> float | None:
    """What a layer's input is rounded in."""
    stored = state.input_scale(name)
    if stored is not None:
        return float(stored)
    return 1.0 if state.scheme(name).activations else None


def _twin(weight_NK: "Array", found: dict[str, GraphLinear], name: str) -> GraphLinear:
    """The layer that stands for another one with the same weight."""
    for linear in found.values():
        if np.array_equal(linear.weight_NK, weight_NK):
            return linear
    raise ExportMismatch(f"the graph lacks {name}")


def _linear(
    node: Any, users: dict[str, list[Any]], makers: dict[str, Any], values: dict[str, Any], module: str
) -> GraphLinear:
    """The layer of a node whose first input is its codes [K, N]."""
    codes_KN = numpy_helper.to_array(values[node.input[0]])
    if node.op_type == "DequantizeLinear":
        scale_N, zero_N = (numpy_helper.to_array(values[name]) for name in node.input[1:3])
        axis = next((one.i for one in node.attribute if one.name == "axis"), None)
        if axis != 1 or zero_N.any():
            raise ExportMismatch(f"{module} is not dequantized by column around zero")
        steps = {_step_of(makers[one.input[0]], values, module) for one in users[node.output[0]]}
        return GraphLinear(_decoded(codes_KN, scale_N), frozenset(steps))
    (product,) = users[node.output[0]]
    scale_N = numpy_helper.to_array(values[next(name for name in product.input if name in values)])
    return GraphLinear(_decoded(codes_KN, scale_N), frozenset())


def _step_of(rounding: Any, values: dict[str, Any], module: str) -> float:
    """The step of the operator that makes the input which a weight is multiplied with."""
    if rounding.op_type != "DequantizeLinear":
        raise ExportMismatch(f"the input of {module} is not rounded")
    return float(numpy_helper.to_array(values[rounding.input[1]]))


def _decoded(codes_KN: "Array", scale_N: "Array") -> "Array":
    return np.ascontiguousarray((codes_KN.astype(np.float32) * scale_N).T)


def _module_of(node: Any) -> str | None:
    return next((one.value for one in node.metadata_props if one.key == MODULE), None)
