"""What a model weighs in a target format: exact but for headers, from shapes and the names of number formats."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import ceil, prod
from types import MappingProxyType
from typing import NamedTuple

from optcore.estimate.constants import GGUF_HEAD_bytes, GGUF_TOKEN_bytes, HEADER_bytes, ONNX_GRAPH_bytes
from optcore.estimate.facts import ModelFacts, Tensor
from optcore.export import AnyExport, Gguf, Onnx
from optcore.frozen import tag
from optcore.schemes import GGML_FORMATS, PRESETS, Scheme, scale_shape, stored_bits

Format = str | float
"""Name of a number format, or bits a value where only a mean is known."""
Formats = Mapping[str, Format]
"""By tensor; what has none is kept in high precision."""

_BLOCKS: Mapping[str, Format] = {
    **dict.fromkeys(("int4", "int4_g64", "int4_g32"), "q4_0"),
    **dict.fromkeys(("int4_asym", "int4_asym_g64", "int4_asym_g32"), "q4_1"),
    "int8_w8a16": "q8_0",
    "mxfp4_w4a16": 4.25,
    "nvfp4_w4a16": 4.5,
}
"""ggml's blocks that hold the codes of other engines' formats, or the bits of a value in them."""
_HALF_SCALES = ("awq", "gptq")
"""Targets whose scales are float16, whatever the model is stored in."""
_PLAIN = {"f32": 4, "f16": 2, "bf16": 2, "fp32": 4, "fp16": 2}


class Model(NamedTuple):
    """A model on its way through a chain."""

    facts: ModelFacts
    formats: Formats = MappingProxyType({})
    """Of what is quantized."""
    compact: float = 1.0
    """What a compact checkpoint's matrices take, as a share of the dense ones."""

    @property
    def weight_bytes(self) -> float:
        """As a checkpoint of ours, quantized or not."""
        return sum(_safetensors(one, self.formats.get(one.name)) for one in self.facts.tensors)


def result_bytes(model: Model, export: AnyExport) -> int:
    """Of the files that hold the weights."""
    if isinstance(export, Gguf):
        return round(_gguf(model, export))
    if isinstance(export, Onnx):
        return round(_onnx(model, export))
    if tag(type(export)) == "compact":
        return round(model.facts.weight_bytes * model.compact + HEADER_bytes * len(model.facts.tensors))
    target = tag(type(export))
    formats = {} if target == "dense" else model.formats
    halves = target in _HALF_SCALES
    return round(
        sum(
            _safetensors(one, own := formats.get(one.name), halves=halves) + _more(target, one, own)
            for one in model.facts.tensors
        )
    )


def least_bytes(model: Model, export: AnyExport) -> int:
    """The same without what is a guess: how long the names of a vocabulary are, which a GGUF holds."""
    guessed = GGUF_TOKEN_bytes * model.facts.vocabulary if isinstance(export, Gguf) else 0
    return result_bytes(model, export) - guessed


def _more(target: str, tensor: Tensor, format_: Format | None) -> float:
    """What AutoAWQ's and GPTQ's layouts have on top: zero points where all are alike too, and GPTQ's group of each
    input."""
    if target not in _HALF_SCALES or not isinstance(format_, str) or tensor.role == "other":
        return 0.0
    args = PRESETS[format_].weights
    zeros = prod(scale_shape(args, tensor.matrix)) * args.bits / 8 if args.symmetric else 0.0
    return tensor.copies * (zeros + HEADER_bytes + (4 * tensor.matrix[1] + HEADER_bytes if target == "gptq" else 0))


def _safetensors(tensor: Tensor, format_: Format | None, *, halves: bool = False) -> float:
    """With the tensors' share of the headers; scales are in the model's own type, or in `halves`."""
    if format_ is None:
        return tensor.elements * tensor.itemsize + HEADER_bytes
    if not isinstance(format_, str):
        return tensor.elements * format_ / 8 + 3 * HEADER_bytes
    return tensor.copies * _matrix_bytes(format_, *tensor.matrix, 2 if halves else max(2, tensor.itemsize))


@lru_cache(maxsize=4096)  # a model has few shapes, and many tensors of each
def _matrix_bytes(format_: str, rows: int, columns: int, scale_bytes: int) -> float:
    scheme = PRESETS[format_]
    beside = tuple(_beside(scheme))
    bits = stored_bits(scheme.weights, (rows, columns)) + _rounded_up(scheme, rows, columns)
    wider = 0
    if scheme.weights.scale_type == "stored":  # counted with the bits as if it had 16
        wider = (scale_bytes - 2) * prod(scale_shape(scheme.weights, (rows, columns)))
    return bits / 8 + wider + sum(beside) + (2 + len(beside)) * HEADER_bytes


def _rounded_up(scheme: Scheme, rows: int, columns: int) -> float:
    """Bits that fill the last word of each row, and those of zero points, which are packed along the outputs."""
    args = scheme.weights
    if args.type != "int" or (args.bits == 8 and not args.packed):
        return 0.0
    filled = 32 * ceil(columns * args.bits / 32) - columns * args.bits
    zeros = 0.0
    if not args.symmetric and args.scale_type == "stored":
        groups = prod(scale_shape(args, (rows, columns))) // rows
        zeros = groups * (32 * ceil(rows * args.bits / 32) - rows * args.bits)
    return rows * filled + zeros


def _beside(scheme: Scheme) -> Iterator[int]:
    """Bytes of the small tensors: a shape, a scale of the inputs."""
    if scheme.weights.type == "int" and not (scheme.weights.bits == 8 and not scheme.weights.packed):
        yield 16
    if scheme.needs_calibration:
        yield 4
    if scheme.weights.scale_type == "e4m3":
        yield 0  # counted with the bits: its header alone


def _gguf(model: Model, export: Gguf) -> float:
    total: float = GGUF_HEAD_bytes + GGUF_TOKEN_bytes * model.facts.vocabulary
    for one in model.facts.tensors:
        total += HEADER_bytes * 0.6
        if (format_ := model.formats.get(one.name)) is not None:
            block = _BLOCKS.get(format_, format_) if isinstance(format_, str) else format_
            bits = _bits(block, one) if isinstance(block, str) else block
            total += one.elements * bits / 8
        else:
            is_matrix = len(one.shape) > 1 and one.role != "router"
            total += one.elements * (_PLAIN[export.plain] if is_matrix else 4)
    return total


def _bits(name: str, tensor: Tensor) -> float:
    return PRESETS[name].bits_per_weight(tensor.matrix)


def _onnx(model: Model, export: Onnx) -> float:
    """Scales are as wide as what is computed in; a tied head is one matrix with the table of tokens."""
    wide = _PLAIN[export.plain]
    total = float(ONNX_GRAPH_bytes * (model.facts.layers + 1))
    for one in model.facts.tensors:
        format_ = model.formats.get(one.name)
        if format_ is None or format_ in GGML_FORMATS or not isinstance(format_, str):
            total += one.elements * wide
        else:
            args = PRESETS[format_].weights
            scales = prod(scale_shape(args, one.matrix)) * one.copies
            if args.strategy == "channel" and args.packed:
                scales = one.copies * one.matrix[0] * ceil(one.matrix[1] / 256)
            total += one.elements * args.bits / 8 + scales * (wide + (0 if args.symmetric else args.bits / 8))
    return total
