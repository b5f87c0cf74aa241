"""Reads a written graph again, with decoders of its own, and holds every matrix against the checkpoint."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch

from optcore.errors import ExportMismatch
from optcore.export.layout_writer import EXACT, Bound, compare
from optcore.export.raw_reader import Array, RawFiles
from optcore.onnx.integer_matmul import MIDDLE
from optcore.onnx.matmul_nbits import NBits, decode
from optcore.onnx.matrices import rows_of
from optcore.onnx.quantized_graph import NBITS

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.streaming.quantized import QuantizedCheckpoint

_HALF = Bound(2.0**-11, 2.0**-25)  # half a unit in float16's last place, and half of its smallest number
_TABLE = "model.embed_tokens"
_HEAD = "lm_head"


def verify_graph(run: "Run", graph: Path, dense: Path, state: "QuantizedCheckpoint | None") -> None:
    """Raises `ExportMismatch` for a matrix of the `dense` checkpoint that the graph lacks or holds with other values.

    `dense` is what the builder read; `state` has the simulated weights of what is quantized. Floats that the graph
    holds in float32, scales among them, must give the very same numbers.
    """
    files, linears = RawFiles(dense), state.description.linears if state else {}
    missing = _matrices(files)
    for count, (node, weight_NK, is_exact) in enumerate(_weights(ir.load(graph)), 1):
        names = rows_of(node, missing.keys() | linears.keys())
        start = 0
        for rows in names:
            simulated = state.weight(rows.module) if state and rows.module in linears else _stored(files, rows.module)
            expected = simulated[rows.of(simulated.shape[0])]
            height = expected.shape[0]
            compare(rows.module, weight_NK[start : start + height], expected, EXACT if is_exact else _HALF)
            missing[rows.module] -= height
            start += height
        if not names or start != weight_NK.shape[0]:
            raise ExportMismatch(f"the graph multiplies by a matrix that is none of the checkpoint's: {node}")
        run.progress("verifying", count, len(missing))
    if lost := [name for name, rows in missing.items() if rows]:
        raise ExportMismatch(f"the graph lacks {', '.join(lost[:5])}")


def _matrices(files: RawFiles) -> dict[str, int]:
    """Rows of every matrix that the graph must hold, by module. A tied head is there though no file has it."""
    shapes = {name.removesuffix(".weight"): files.shape(name) for name in files.names if name.endswith(".weight")}
    found = {name: shape[0] for name, shape in shapes.items() if len(shape) == 2}
    return found if _HEAD in found else found | {_HEAD: found[_TABLE]}


def _stored(files: RawFiles, module: str) -> torch.Tensor:
    name = f"{module}.weight"
    if module == _HEAD and name not in files.names:
        name = f"{_TABLE}.weight"
    return torch.from_numpy(files.floats(name).copy())


def _weights(model: ir.Model) -> Iterator[tuple[str, Array, bool]]:
    """Every node with a constant matrix, its weight [N, K], and whether float32 held all of its numbers."""
    for node in model.graph:
        if node.op_type == "MatMul" and node.inputs[1].const_value is not None:
            yield node.name, _array(node.inputs[1]).T.astype(np.float32), _is_single(node.inputs[1])
        elif node.op_type == "Gather" and node.name.endswith("embed_tokens/Gather"):
            table = node.inputs[0]
            stored = table if table.const_value is not None else table.producer().inputs[0]
            rows = _array(stored) if stored is table else _array(stored).T  # a tied table is the head, transposed
            yield node.name.removesuffix("/Gather"), rows.astype(np.float32), _is_single(stored)
        elif node.op_type == NBITS:
            yield node.name, decode(_packed(node)), _is_single(node.inputs[2])
        elif node.op_type == "MatMulInteger":
            yield f"{node.name.removesuffix('Integer')}", _integers(node), True


def _packed(node: ir.Node) -> NBits:
    weight, scale, *zero = (_array(value) for value in node.inputs[1:])
    settings = {name: node.attributes[name].as_int() for name in ("bits", "block_size", "K")}
    return NBits(weight, scale, zero[0] if zero else None, settings["bits"], settings["block_size"], settings["K"])


def _integers(node: ir.Node) -> Array:
    """Codes times the scales of the channels, float32 [N, K]; the input's scale comes first and is one number."""
    codes_NK = _array(node.inputs[1]).T.astype(np.float32) - np.float32(MIDDLE)
    constants = (user.inputs[1] for user in _following(node) if user.op_type == "Mul")
    scale_N = next(_array(one) for one in constants if one.const_value is not None and len(one.shape) == 1)
    return codes_NK * scale_N[:, None]


def _following(node: ir.Node) -> Iterator[ir.Node]:
    """What uses a node's result, what uses that, and so on, where each has one user."""
    while len(users := list(node.successors())) == 1:
        node = users[0]
        yield node


def _array(value: ir.Value) -> Array:
    content: Array = value.const_value.numpy()
    return content


def _is_single(value: ir.Value) -> bool:
    return bool(value.dtype == ir.DataType.FLOAT)
