"""Acceptance of AutoQuantize: better than the uniform formats at equal bits, and near the best of all assignments."""

from collections.abc import Mapping
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from fixtures.exporting import run_of
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForCausalLM

from optcore.calibration.budget import Unit, spend
from optcore.calibration.candidates import score_units
from optcore.calibration.quantize import quantize_checkpoint
from optcore.calibration.text import Texts
from optcore.evaluate.fidelity_stream import compare
from optcore.references import Calibration
from optcore.run import Run
from optcore.streaming.quantized import QuantizedCheckpoint
from optcore.techniques import AutoQuantize

CALIBRATION = Calibration(dataset="python-stdlib", samples=16, sequence_length=256)
CANDIDATES = ("int3_g32", "mxfp4_w4a16", "nvfp4_w4a16", "int8_w8a16")
BUDGETS = (4.5, 5.0, 6.0)


def run_on(model: Path, folder: Path, checkpoint: Path | None = None) -> Run:
    return run_of(model, checkpoint or model, folder / "out", calibration=CALIBRATION)


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_mixed_formats_lie_below_the_line_between_uniform_ones(
    rounding: str, stdlib_model: Path, tmp_path: Path
) -> None:
    """Every figure is the true KL over held-out text of a checkpoint that the pass wrote."""
    technique = AutoQuantize.model_validate(
        {"candidates": CANDIDATES, "effective_bits": 5, "rounding": rounding, "smoothing": "none"}
    )
    units = score_units(run_on(stdlib_model, tmp_path / "scores"), technique)

    def kl(name: str, chosen: Mapping[str, str | None]) -> float:
        run = run_on(stdlib_model, tmp_path / name)
        quantize_checkpoint(run, technique.quantizing, chosen)
        found, _ = compare(run_on(stdlib_model, tmp_path / f"{name}-kl", run.out), 16, 256)
        return found["result"].mean_kl

    uniform = sorted((bits(units, name), kl(name, dict.fromkeys(modules(units), name))) for name in CANDIDATES)
    print(f"rounding {rounding}; uniform:", ", ".join(f"{b:.3f} bits KL {value:.5f}" for b, value in uniform))
    missed = []
    for budget in BUDGETS:
        allocation = spend(units, budget)
        found, line = kl(f"auto-{budget}", allocation.assignment), on_the_line(uniform, allocation.bits)
        print(
            f"auto {budget:g}: {allocation.bits:.3f} bits KL {found:.5f} (predicted {allocation.predicted_kl:.5f}), ",
            end="",
        )
        print(f"{found / line:.2f} of the line at {line:.5f}")
        missed += [budget] if found > line else []
    assert missed == []


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_near_the_best_of_all_assignments(stdlib_model: Path, tmp_path: Path) -> None:
    """Two formats for the 8 units of two layers: all 256 assignments are measured on 1024 held-out tokens, and the
    front runners of each budget again on 16384, where differences of a few percent are no longer noise."""
    formats, closed = ("mxfp4_w4a16", "int8_w8a16"), "re:.*layers\\.[2-5]\\..*"
    technique = AutoQuantize(
        candidates=formats, effective_bits=16, rounding="nearest", smoothing="none", ignore=(closed,)
    )
    scored = score_units(run_on(stdlib_model, tmp_path / "scores"), technique)
    units = [unit for unit in scored if "none" not in unit.candidates]
    model = Enumerated(stdlib_model, tmp_path, technique, units)
    everything = list(product(formats, repeat=len(units)))
    assert len(everything) == 256
    few, many = model.windows(4), model.windows(64)
    measured = {names: model.kl(names, few) for names in everything}
    for budget in (*BUDGETS, 7.0):
        chosen = tuple(choice.scheme for choice in spend(units, budget).choices)
        able = sorted((names for names in everything if mean_bits(units, names) <= budget), key=measured.__getitem__)
        best = min(model.kl(names, many) for names in able[:6])
        found = model.kl(chosen, many)
        print(f"{budget:g} bits: KL {found:.6f}, best of {len(able)} assignments {best:.6f}, ratio {found / best:.3f}")
        assert found <= 1.05 * best


class Enumerated:
    """The whole model in memory, its units in any formats; weights come from checkpoints that the pass wrote."""

    def __init__(self, source: Path, folder: Path, technique: AutoQuantize, units: list[Unit]) -> None:
        self._source = source
        self._units = units
        self._model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        self._dense = {name: self._model.get_submodule(name).weight.data for name in modules(units)}
        self._rounded = {}
        for scheme in technique.schemes:
            run = run_on(source, folder / scheme)
            quantize_checkpoint(run, technique.quantizing, dict.fromkeys(modules(units), scheme))
            checkpoint = QuantizedCheckpoint(run.out)
            self._rounded[scheme] = {name: checkpoint.weight(name) for name in modules(units)}

    def windows(self, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Held-out tokens, and what the source predicts after them."""
        self._put(self._dense)
        tokens_ST = Texts(self._source, CALIBRATION, ()).evaluation_windows(count, 256, 1024)
        return [(tokens_BT, self._predictions(tokens_BT)) for tokens_BT in tokens_ST.split(4)]

    def kl(self, names: tuple[str, ...], windows: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        """Mean divergence in nats a token."""
        for unit, name in zip(self._units, names, strict=True):
            self._put({module: self._rounded[name][module] for module in unit.modules})
        sums = [
            kl_div(self._predictions(tokens), source, log_target=True, reduction="sum").item()
            for tokens, source in windows
        ]
        return sum(sums) / sum(tokens.numel() for tokens, _ in windows)

    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        for module, weight in weights.items():
            self._model.get_submodule(module).weight.data = weight

    @torch.no_grad()
    def _predictions(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return log_softmax(self._model(tokens_BT).logits, -1)


def modules(units: list[Unit]) -> list[str]:
    return [name for unit in units for name in unit.modules]


def bits(units: list[Unit], scheme: str) -> float:
    return mean_bits(units, (scheme,) * len(units))


def mean_bits(units: list[Unit], names: tuple[str, ...]) -> float:
    cost = sum(unit.candidates[name].cost for unit, name in zip(units, names, strict=True))
    return cost / sum(unit.size for unit in units)


def on_the_line(points: list[tuple[float, float]], at: float) -> float:
    """KL at some bits on the straight line between the neighbouring uniform formats."""
    (left, high), (right, low) = next((a, b) for a, b in pairwise(points) if a[0] <= at <= b[0])
    return high + (low - high) * (at - left) / (right - left)
