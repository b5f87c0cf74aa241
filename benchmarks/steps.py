"""What each part of post-training quantization buys and costs, one added after the other up to the default recipe.

The floor of a calibrating pass is one forward of the model over the calibration text, by transformers, with the same
threads in the same process.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from optcore.calibration.text import Texts
from optcore.evaluate.fidelity_stream import compare
from optcore.references import Calibration
from optcore.run import Run
from optcore.techniques import Ptq

CALIBRATION = Calibration(dataset="python-stdlib", samples=64, sequence_length=256)
EVALUATION_windows, EVALUATION_tokens = 32, 512
SCHEMES = ("int4_g32", "nvfp4")


def compare_steps(model: Path) -> None:
    """Print a Markdown table for each format."""
    torch.set_num_threads(2)
    floor = _floor_seconds(model)
    print(f"{model.name}; calibration {CALIBRATION.samples} x {CALIBRATION.sequence_length} tokens, ", end="")
    print(f"evaluation {EVALUATION_windows} x {EVALUATION_tokens} held-out tokens; {torch.get_num_threads()} threads")
    print(f"floor: one transformers forward over the calibration text, {floor:.2f} s")
    for scheme in SCHEMES:
        print(f"\n| {scheme} | KL | of plain rounding | seconds | of the floor |\n| :-- | --: | --: | --: | --: |")
        plain = None
        for name, settings in _steps():
            kl, seconds = _measured(model, Ptq.model_validate({"scheme": scheme, **settings}))
            plain = plain or kl
            print(f"| {name} | {kl:.5f} | {kl / plain:.3f} | {seconds:.1f} | {seconds / floor:.1f} |", flush=True)


def _steps() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each with everything before it."""
    settings: dict[str, Any] = {"rounding": "nearest", "scale_search": "max", "smoothing": "none"}
    yield "plain rounding", settings
    settings |= {"scale_search": "mse"}
    yield "scales by least squared error", settings
    settings |= {"rounding": "gptq", "propagate": "original"}
    gptq = {"act_order": False, "sweeps": 0, "refit": False}
    yield "GPTQ, columns in order", settings | {"gptq": gptq}
    gptq |= {"act_order": True}
    yield "columns by importance", settings | {"gptq": gptq}
    gptq |= {"sweeps": 2}
    yield "two sweeps of coordinate descent", settings | {"gptq": gptq}
    gptq |= {"refit": True}
    yield "scales refitted", settings | {"gptq": gptq}
    settings |= {"smoothing": "awq"}
    yield "smoothing by AWQ", settings | {"gptq": gptq}
    settings |= {"propagate": "quantized"}
    yield "inputs of the quantized layers", settings | {"gptq": gptq | {"asymmetry": 0}}
    yield "asymmetric target (the default)", settings | {"gptq": gptq}


def _measured(model: Path, technique: Ptq) -> tuple[float, float]:
    """Mean KL in nats a token, and the seconds of the whole technique, reading the text included."""
    with tempfile.TemporaryDirectory() as folder:
        quantized, scratch = Path(folder) / "quantized", Path(folder) / "measured"
        quantizing, measuring = _run(model, model, quantized), _run(model, quantized, scratch)
        started = time.perf_counter()
        technique.apply(quantizing)
        seconds = time.perf_counter() - started
        found, _ = compare(measuring, EVALUATION_windows, EVALUATION_tokens)
    return found["result"].mean_kl, seconds


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
    out.mkdir()
    return Run("benchmark", checkpoint, model, out, out.with_name("scratch"), CALIBRATION, (), lambda event: None)
