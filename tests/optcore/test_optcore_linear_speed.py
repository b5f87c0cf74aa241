"""How much faster linear layers are by the engine's kernels: what is timed, what it is compared with, and the sums."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from fixtures.exporting import plain, run_of
from fixtures.tiny_models import MakeModel

from optcore.evaluate.linears import Product, measure_linears, speed_ups
from optcore.report import Measurement
from optcore.streaming.quantized import QuantizedCheckpoint

CPU = torch.device("cpu")


class Ticks:
    """A clock for a machine where no figure would mean anything: a second for each output of a product in bfloat16,
    half of that in a format; it keeps what products gave."""

    def __init__(self) -> None:
        self.dense: list[torch.Tensor] = []
        self.quantized: list[torch.Tensor] = []

    def __call__(self, products: Sequence[Product]) -> float:
        is_dense = len(self.dense) == len(self.quantized)
        made = products[0]()
        (self.dense if is_dense else self.quantized).append(made)
        return float(made.shape[1]) / (1 if is_dense else 2)


def quantized(source: Path, scheme: str, folder: Path) -> Path:
    plain(scheme).apply(run_of(source, source, folder / scheme))
    return folder / scheme


@pytest.mark.parametrize("scheme", ["int4", "fp8_dynamic"])
def test_each_distinct_shape_is_timed_in_both_forms_and_weighted_by_its_number(
    tiny_model: MakeModel, tmp_path: Path, scheme: str
) -> None:
    checkpoint = QuantizedCheckpoint(quantized(tiny_model("Llama"), scheme, tmp_path))
    clock = Ticks()
    rows = speed_ups(checkpoint, CPU, clock)
    assert [row.name for row in rows] == [f"linear_speed_up_{scheme}_{tokens}" for tokens in (1, 16)]
    names = checkpoint.description.modules
    outputs = sum(len(checkpoint.weight(name)) for name in names)
    assert [row.result for row in rows] == [2.0, 2.0]
    assert all(_said(row, len(names), outputs) for row in rows)
    shapes = {checkpoint.weight(name).shape for name in names}
    assert len(clock.dense) == len(clock.quantized) == 2 * len(shapes)
    for dense, ours in zip(clock.dense, clock.quantized, strict=True):
        # The very weight, decoded and rounded to bfloat16; inputs too are rounded in FP8.
        assert float((dense - ours).norm() / dense.norm()) < (0.05 if scheme == "fp8_dynamic" else 0.01)


def test_a_format_without_a_kernel_has_no_figure(tiny_model: MakeModel, tmp_path: Path) -> None:
    checkpoint = QuantizedCheckpoint(quantized(tiny_model("Llama"), "mxfp4", tmp_path))
    assert speed_ups(checkpoint, CPU, Ticks()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device has a figure")
def test_a_machine_without_a_gpu_has_no_figure(tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tiny_model("Llama")
    assert measure_linears(run_of(source, quantized(source, "int4", tmp_path), tmp_path / "out")) == []


def _said(row: Measurement, linears: int, outputs: int) -> bool:
    times = f"{outputs * 1e6:.1f} us in bfloat16, {outputs / 2 * 1e6:.1f} us in the format"
    return row.note.startswith(f"{linears} linear layers: {times}, on cpu") and row.source == 1.0
