"""How much faster linear layers are in a format than in bfloat16, each by the engine's kernel for it, on a GPU."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.functional import linear

from optcore.kernels.dispatch import uses_triton
from optcore.kernels.fp8_matmul import fp8_matmul
from optcore.kernels.weight_only import weight_only_matmul
from optcore.quantization import load_quantization
from optcore.report import Measurement
from optcore.schemes import Scheme
from optcore.streaming.quantized import QuantizedCheckpoint

if TYPE_CHECKING:
    from optcore.run import Run

_MOST_copies = 64
TOKENS = (1, 16)
"""Rows of the products that are timed: one text, and a small batch."""
Product = Callable[[], Any]
Clock = Callable[[Sequence[Product]], float]
_WARM_UPS, _TIMES = 3, 25


class _Times(NamedTuple):
    """Seconds of all linear layers in one format."""

    linears: int
    dense: float
    quantized: float


def measure_linears(run: "Run") -> list[Measurement]:
    """Rows for each format of the checkpoint that has a kernel; none where there is no CUDA device."""
    if not torch.cuda.is_available() or not load_quantization(run.checkpoint):
        return []
    device = torch.device("cuda", torch.cuda.current_device())
    if not uses_triton(torch.empty(0, device=device)):
        return []
    try:
        return speed_ups(QuantizedCheckpoint(run.checkpoint), device, _graph_seconds)
    except torch.OutOfMemoryError:  # a finished checkpoint is not lost for it
        run.notice("the speed-up of linear layers was not measured: the GPU's memory is full")
        return []


def speed_ups(checkpoint: QuantizedCheckpoint, device: torch.device, clock: Clock) -> list[Measurement]:
    """Time in bfloat16 over time in the format, of all linear layers in it: one is measured for each distinct shape."""
    rows = []
    for scheme in checkpoint.description.schemes:
        names = checkpoint.description.modules_of(scheme.name)
        for tokens in TOKENS:
            times = _times(checkpoint, scheme, names, tokens, device, clock)
            if times.linears:
                rows.append(_row(scheme, tokens, times, device))
    return rows


def _row(scheme: Scheme, tokens: int, times: _Times, device: torch.device) -> Measurement:
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    many = f"{tokens} token" + ("s" if tokens > 1 else "")
    spent = f"{times.dense * 1e6:.1f} us in bfloat16, {times.quantized * 1e6:.1f} us in the format"
    return Measurement(
        name=f"linear_speed_up_{scheme.name}_{tokens}",
        title=f"Measured speed-up of linears, {scheme.title}, {many}",
        unit="x",
        source=1.0,
        result=times.dense / times.quantized,
        better="higher",
        note=f"{times.linears} linear layers: {spent}, on {place}; products alone, by this engine's kernels",
    )


def _times(
    checkpoint: QuantizedCheckpoint, scheme: Scheme, names: list[str], tokens: int, device: torch.device, clock: Clock
) -> _Times:
    linears, dense, quantized = 0, 0.0, 0.0
    shapes = {name: checkpoint.shape(f"{name}.{_codes(scheme)}") for name in names}
    examples = {shape: name for name, shape in shapes.items()}
    for shape, count in Counter(shapes.values()).items():
        stored = {suffix: one.to(device) for suffix, one in checkpoint.stored(examples[shape]).items()}
        weight_NK = checkpoint.weight(examples[shape]).to(device, torch.bfloat16)
        x_MK = torch.randn(tokens, weight_NK.shape[1], device=device, dtype=torch.bfloat16)
        if _multiply(x_MK, stored, scheme) is NotImplemented:
            continue
        linears += count
        dense += count * clock([partial(linear, x_MK, one["weight"]) for one in _copies({"weight": weight_NK})])
        quantized += count * clock([partial(_multiply, x_MK, one, scheme) for one in _copies(stored)])
    return _Times(linears, dense, quantized)


def _codes(scheme: Scheme) -> str:
    return "weight" if scheme.weights.bits == 8 and not scheme.weights.packed else "weight_packed"


def _multiply(x_MK: torch.Tensor, stored: dict[str, torch.Tensor], scheme: Scheme) -> Any:
    """By a format's kernel; `NotImplemented` where none was written. NVFP4 is multiplied with inputs as they are, which
    is what engines do with it on cards without FP4 arithmetic."""
    if scheme.name == "fp8_dynamic":
        return fp8_matmul.launch(x_MK, stored["weight"], stored["weight_scale"])
    if scheme.activations is None or scheme.weights.strategy == "tensor_group":
        return weight_only_matmul.launch(x_MK, stored, scheme.weights)
    return NotImplemented


def _copies(tensors: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """As many as fill the card's cache twice, so that every product reads its weight from memory."""
    device = next(iter(tensors.values())).device
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    own_bytes = sum(one.nbytes for one in tensors.values())
    for _ in range(min(_MOST_copies, 1 + ceil(2 * cache_bytes / own_bytes))):
        yield {name: one.clone() for name, one in tensors.items()}


def _graph_seconds(products: Sequence[Product]) -> float:
    """Median seconds of one product. All are replayed from one CUDA graph: to launch one from Python takes longer than
    it runs."""
    for product in products:  # kernels are compiled at their first call, which a graph cannot record
        product()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for product in products:
            product()
    return median([_replayed(graph) for _ in range(_WARM_UPS + _TIMES)][_WARM_UPS:]) / len(products)


def _replayed(graph: torch.cuda.CUDAGraph) -> float:
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    started.record()
    graph.replay()
    ended.record()
    ended.synchronize()
    return started.elapsed_time(ended) / 1000
