"""W8A8 in standard operators: inputs rounded per token or per tensor, `MatMulInteger`, and the scales of both sides.

ONNX's own `DynamicQuantizeLinear` has one scale for all tokens and an asymmetric range, so rounding is spelled out.
Codes are stored with 128 added: on CPUs without VNNI the kernels for signed weights saturate (16-bit sums of products),
and those for unsigned ones do not. https://onnx.ai/onnx/operators/onnx__MatMulInteger.html

x [B, T, K], W [N, K].
"""

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from optcore.algorithms.rounding import scale_reach
from optcore.onnx.initializers import constant, lazy_initializer
from optcore.onnx.matrices import Rows

if TYPE_CHECKING:
    from optcore.streaming.quantized import QuantizedCheckpoint

MIDDLE = 128
"""What is added to a signed code."""
_SMALLEST = float(np.finfo(np.float32).tiny)  # the step of a token that is all zeros


class IntegerMatMul:
    """Replaces a graph's `MatMul`s; layers that read the same input share its codes."""

    def __init__(self, graph: ir.Graph, state: "QuantizedCheckpoint") -> None:
        self.graph = graph
        self.state = state
        self._rounded: dict[tuple[str, float], tuple[ir.Value, ir.Value]] = {}

    def replace(self, node: ir.Node, rows: tuple[Rows, ...]) -> None:
        """Put the integer product in a `MatMul`'s place; its output keeps its name."""
        (row,), stem, weight = rows, node.name.removesuffix("/MatMul"), node.inputs[1]
        inputs, outputs = (int(size) for size in weight.shape)
        codes, step = self._codes_of(node, row.module)
        middle = constant(self.graph, "/int8/middle", np.array(MIDDLE, np.uint8))
        operands = [codes, self._weight(stem, row, (inputs, outputs)), middle, middle]
        whole = self._before(node, "MatMulInteger", operands, f"{stem}/MatMulInteger")
        sums = self._cast(node, whole, ir.DataType.FLOAT, f"{stem}/Sums")
        per_token = self._before(node, "Mul", [sums, step], f"{stem}/TokenScale")
        product = self._before(node, "Mul", [per_token, self._scale(stem, row, outputs)], f"{stem}/ChannelScale")
        node.op_type = "Cast"
        node.resize_inputs(1)
        node.replace_input_with(0, product)
        node.attributes.add(ir.AttrInt64("to", weight.dtype.value))

    def _codes_of(self, node: ir.Node, module: str) -> tuple[ir.Value, ir.Value]:
        """uint8 codes [B, T, K] of the layer's input and their steps, float32 [B, T, 1] or one number."""
        stored = self.state.input_scale(module)
        fixed = None if stored is None else float(stored.float())
        key = (node.inputs[0].name, fixed or 0.0)
        if key not in self._rounded:
            stem = f"{key[0]}/Int8" + ("" if fixed is None else f"/{fixed.hex()}")
            x = self._cast(node, node.inputs[0], ir.DataType.FLOAT, f"{stem}/Input")
            step = self._steps(node, x, stem, module) if fixed is None else self._number(f"{stem}/step", fixed)
            nearest = self._before(
                node, "Round", [self._before(node, "Div", [x, step], f"{stem}/Div")], f"{stem}/Round"
            )
            ends = [self._number(f"/int8/{end}", end) for end in (-MIDDLE, MIDDLE - 1)]
            clipped = self._before(node, "Clip", [nearest, *ends], f"{stem}/Clip")
            lifted = self._before(node, "Add", [clipped, self._number("/int8/lift", MIDDLE)], f"{stem}/Lift")
            self._rounded[key] = self._cast(node, lifted, ir.DataType.UINT8, f"{stem}/Codes"), step
        return self._rounded[key]

    def _steps(self, node: ir.Node, x: ir.Value, stem: str, module: str) -> ir.Value:
        """A step for each token: its largest magnitude over the reach of the codes, never zero."""
        args = self.state.scheme(module).activations
        assert args
        reach = self._number("/int8/reach", scale_reach(args))
        magnitude = self._before(node, "Abs", [x], f"{stem}/Abs")
        last = constant(self.graph, "/int8/last", np.array([-1], np.int64))
        largest = self._before(
            node, "ReduceMax", [magnitude, last], f"{stem}/Max", keepdims=ir.AttrInt64("keepdims", 1)
        )
        step = self._before(node, "Div", [largest, reach], f"{stem}/Step")
        return self._before(node, "Max", [step, self._number("/int8/tiny", _SMALLEST)], f"{stem}/NotZero")

    def _weight(self, stem: str, row: Rows, shape_KN: tuple[int, int]) -> ir.Value:
        name = f"{stem.strip('/').replace('/', '.')}.weight_codes"

        def tensor() -> ir.Tensor:
            codes_NK = self.state.codes(row.module)[0]
            lifted = codes_NK[row.of(codes_NK.shape[0])].numpy().astype(np.int16) + MIDDLE
            return ir.Tensor(np.ascontiguousarray(lifted.T.astype(np.uint8)), name=name)

        return lazy_initializer(self.graph, name, ir.DataType.UINT8, shape_KN, tensor)

    def _scale(self, stem: str, row: Rows, outputs: int) -> ir.Value:
        name = f"{stem.strip('/').replace('/', '.')}.weight_scale"

        def tensor() -> ir.Tensor:
            step_N = self.state.codes(row.module)[1].step().reshape(-1).numpy()
            return ir.Tensor(step_N[row.of(len(step_N))].astype(np.float32), name=name)

        return lazy_initializer(self.graph, name, ir.DataType.FLOAT, (outputs,), tensor)

    def _number(self, name: str, number: float) -> ir.Value:
        return constant(self.graph, name, np.array(number, np.float32))

    def _cast(self, node: ir.Node, value: ir.Value, to: ir.DataType, name: str) -> ir.Value:
        return self._before(node, "Cast", [value], name, to=ir.AttrInt64("to", to.value))

    def _before(
        self, node: ir.Node, op_type: str, inputs: list[ir.Value], name: str, **attributes: ir.Attr
    ) -> ir.Value:
        made = ir.Node("", op_type, inputs, attributes.values(), outputs=[ir.Value(name=f"{name}/output_0")], name=name)
        self.graph.insert_before(node, made)
        return made.outputs[0]
