"""Constants of a graph."""

from collections.abc import Callable

import onnx_ir as ir

from optcore.export.raw_reader import Array


def lazy_initializer(
    graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...], tensor: Callable[[], ir.Tensor]
) -> ir.Value:
    """A constant that is computed when the file is written, and again whenever it is asked for."""
    return _registered(graph, name, ir.LazyTensor(tensor, dtype, ir.Shape(shape), name=name))


def constant(graph: ir.Graph, name: str, content: Array) -> ir.Value:
    """A small constant; the one of that name where there is one already."""
    known: ir.Value | None = graph.initializers.get(name)
    return known or _registered(graph, name, ir.Tensor(content, name=name))


def _registered(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
