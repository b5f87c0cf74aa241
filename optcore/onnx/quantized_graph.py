"""Puts the codes and scales of a quantized checkpoint into the graph that the builder wrote of its rounded weights."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from optcore.export.raw_reader import Array
from optcore.onnx.initializers import lazy_initializer
from optcore.onnx.integer_matmul import IntegerMatMul
from optcore.onnx.matmul_nbits import NBits, pack
from optcore.onnx.matrices import Rows, rows_of

if TYPE_CHECKING:
    from optcore.streaming.quantized import QuantizedCheckpoint

NBITS = "MatMulNBits"
_DOMAIN = "com.microsoft"


class QuantizedGraph:
    """The builder's graph while its matrices give way to codes. A weight is read when it is written, one at a time."""

    def __init__(self, graph: Path, state: "QuantizedCheckpoint") -> None:
        self.model = ir.load(graph)
        self.state = state
        self._packed = lru_cache(maxsize=1)(self._pack)
        self._inputs = IntegerMatMul(self.model.graph, state)

    def put_codes(self) -> None:
        """Replace every `MatMul` whose weight is quantized."""
        linears = self.state.description.linears
        for node in list(self.model.graph):
            rows = rows_of(node.name, linears) if node.op_type == "MatMul" else ()
            if not rows:
                continue
            weight = node.inputs[1]
            if self.state.scheme(rows[0].module).activations:
                self._inputs.replace(node, rows)
            else:
                self._replace(node, rows)
            if not weight.uses():
                self.model.graph.initializers.pop(weight.name)

    def save(self, path: Path) -> None:
        """Write the graph, and all tensors but the smallest, which shape inference must see, to `<name>.data`."""
        self.model.graph.sort()
        ir.save(self.model, path, external_data=f"{path.name}.data")

    def _replace(self, node: ir.Node, rows: tuple[Rows, ...]) -> None:
        packed, float_type = self._packed(rows), node.inputs[1].dtype
        stem = node.name.strip("/").replace("/", ".")
        inputs = [
            node.inputs[0],
            self._initializer(f"{stem}.qweight", ir.DataType.UINT8, packed.weight_NGB.shape, rows, "weight_NGB"),
            self._initializer(f"{stem}.scales", float_type, packed.scale_NG.shape, rows, "scale_NG"),
        ]
        if packed.zero_NG is not None:
            shape = packed.zero_NG.shape
            inputs.append(self._initializer(f"{stem}.qzeros", ir.DataType.UINT8, shape, rows, "zero_NG"))
        settings = {"K": packed.inputs, "N": packed.scale_NG.shape[0], "bits": packed.bits, "block_size": packed.block}
        node.op_type, node.domain = NBITS, _DOMAIN
        node.resize_inputs(len(inputs))
        for place, value in enumerate(inputs):
            node.replace_input_with(place, value)
        for name, number in settings.items():
            node.attributes.add(ir.AttrInt64(name, number))

    def _initializer(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], rows: tuple[Rows, ...], part: str
    ) -> ir.Value:
        def tensor() -> ir.Tensor:
            found: Array = getattr(self._packed(rows), part)
            return ir.Tensor(np.ascontiguousarray(found.astype(dtype.numpy())), dtype=dtype, name=name)

        return lazy_initializer(self.model.graph, name, dtype, shape, tensor)

    def _pack(self, rows: tuple[Rows, ...]) -> NBits:
        codes, scales, zeros = [], [], []
        for row in rows:
            codes_NK, found = self.state.codes(row.module)
            kept = row.of(codes_NK.shape[0])
            codes.append(codes_NK[kept].numpy())
            scales.append(found.step()[kept].numpy())
            zeros.append(None if found.zero_point is None else found.zero_point[kept].numpy())
        zero = None if zeros[0] is None else np.concatenate([zero for zero in zeros if zero is not None])
        bits = self.state.scheme(rows[0].module).weights.bits
        return pack(np.concatenate(codes), np.concatenate(scales), zero, bits)
