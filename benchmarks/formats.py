"""Every number format on one model, rounded to nearest: size, fidelity with and without scale search, and time.

The floor of a calibrating pass is one forward of the model over the calibration text, by transformers, with the same
threads in the same process; a pass that also finds scales cannot be faster than that.
"""

import tempfile
import time
from pathlib import Path

import torch

from optcore.calibration.text import Texts
from optcore.evaluate import Fidelity
from optcore.export import CompressedTensors
from optcore.references import Calibration
from optcore.run import Run
from optcore.schemes import PRESETS
from optcore.sizes import size_measurements
from optcore.techniques import Ptq

CALIBRATION = Calibration(dataset="python-stdlib", samples=64, sequence_length=256)
EVALUATION = Fidelity(samples=64, sequence_length=512)


def compare_formats(model: Path) -> None:
    """Print a Markdown table, one row a format."""
    torch.set_num_threads(2)
    floor = _floor_seconds(model)
    print(
        f"{model.name}; calibration {CALIBRATION.samples} x {CALIBRATION.sequence_length} tokens, evaluation ", end=""
    )
    print(f"{EVALUATION.samples} x {EVALUATION.sequence_length} held-out tokens; {torch.get_num_threads()} threads")
    print(f"floor: one transformers forward over the calibration text, {floor:.2f} s\n")
    print("| format | bits/weight | perplexity | KL, max scales | KL, searched | ratio | top-1 | pass | pass/floor |")
    print("| :-- | --: | --: | --: | --: | --: | --: | --: | --: |")
    for scheme in filter(CompressedTensors.schemes.__contains__, PRESETS):
        with tempfile.TemporaryDirectory() as folder:
            print(_row(scheme, model, Path(folder), floor), flush=True)


def _row(scheme: str, model: Path, folder: Path, floor: float) -> str:
    checkpoint, export = folder / "checkpoint", folder / "export"
    checkpoint.mkdir()
    export.mkdir()
    started = time.perf_counter()
    Ptq(scheme=scheme, rounding="nearest", smoothing="none").apply(_run(model, model, checkpoint))
    seconds = time.perf_counter() - started
    CompressedTensors().write(_run(model, checkpoint, export))
    rows = {row.name: row for row in EVALUATION.measure(_run(model, checkpoint, export))}
    bits = size_measurements(model, export)[1].result
    kl = rows["mean_kl"]
    assert kl.result is not None
    assert kl.baseline is not None
    return (
        f"| {scheme} | {bits:.2f} | {rows['perplexity'].source:.3f} -> {rows['perplexity'].result:.3f} "
        f"| {kl.baseline:.5f} | {kl.result:.5f} | {kl.result / kl.baseline:.3f} "
        f"| {rows['agreement'].result:.4f} | {seconds:.2f} s | {seconds / floor:.2f} |"
    )


@torch.no_grad()
def _floor_seconds(model: Path) -> float:
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval().base_model
    windows_ST = Texts(model, CALIBRATION, ()).calibration_windows(CALIBRATION.sequence_length)
    whole(windows_ST[:16])
    started = time.perf_counter()
    for batch_BT in windows_ST.split(16):
        whole(batch_BT)
    return time.perf_counter() - started


def _run(model: Path, checkpoint: Path, out: Path) -> Run:
    scratch = out.parent / "scratch"
    return Run("benchmark", checkpoint, model, out, scratch, CALIBRATION, (), lambda event: None)
