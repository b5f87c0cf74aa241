"""What passes over the layers say of each as soon as it is done: a curve that grows while they run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import described, plain, run_of
from fixtures.tiny_models import MakeModel
from safetensors.torch import load_file

from optcore.calibration.reconstruction import lost_share
from optcore.evaluate import Fidelity
from optcore.events import AnyEvent, Metric, Progress
from optcore.streaming.quantized import QuantizedCheckpoint
from optcore.techniques import LowRank, Palettize, Ptq, Sparsify
from optcore.techniques.options import Gptq

LAYERS = 2


def told(events: list[AnyEvent], name: str) -> dict[int | None, float]:
    return {event.step: event.value for event in events if isinstance(event, Metric) and event.name == name}


def heard(technique: Any, model: Path, out: Path) -> list[AnyEvent]:
    events: list[AnyEvent] = []
    technique.apply(run_of(model, model, out, events))
    return events


def test_a_lost_share_is_that_of_the_outputs() -> None:
    """Against the outputs themselves, of inputs without correlations: a scaled identity."""
    draw = torch.Generator().manual_seed(1)
    weight_NK, change_NK = torch.randn(2, 6, 4, generator=draw)
    mean_square_K = torch.tensor([4.0, 1.0, 0.25, 9.0])
    inputs_KK = mean_square_K.sqrt().diag()
    lost = (change_NK @ inputs_KK).square().sum() / (weight_NK @ inputs_KK).square().sum()
    assert lost_share(weight_NK, weight_NK + change_NK, mean_square_K) == pytest.approx(float(lost), rel=1e-5)
    assert lost_share(weight_NK.bfloat16(), weight_NK.bfloat16().float()) == 0
    assert lost_share(torch.zeros(2, 2), torch.ones(2, 2)) == 0


def test_gptq_tells_its_own_loss(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("Llama")
    quick = Ptq(scheme="int4_g32", smoothing="none", scale_search="max", gptq=Gptq(sweeps=1, refit=False))
    found = told(heard(quick, model, tmp_path / "out"), "reconstruction_error")
    linears = described(tmp_path / "out").linears
    for index in range(LAYERS):
        losses = [one.loss for name, one in linears.items() if f"layers.{index}." in name]
        assert found[index] == pytest.approx(torch.tensor(losses).mean().sqrt().item(), rel=1e-6)
    assert found.keys() == set(range(LAYERS))


def test_rounding_without_text_tells_what_it_does_to_the_weights(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("Llama")
    events = heard(plain("int8"), model, tmp_path / "out")
    stored, source = QuantizedCheckpoint(tmp_path / "out"), load_file(model / "model.safetensors")
    shares: dict[int, list[float]] = {}
    for name in described(tmp_path / "out").linears:
        weight, rounded = source[f"{name}.weight"].float(), stored.weight(name)
        shares.setdefault(int(name.split(".")[2]), []).append(
            float((rounded - weight).norm() ** 2 / weight.norm() ** 2)
        )
    found = told(events, "reconstruction_error")
    assert found == {index: pytest.approx((sum(each) / len(each)) ** 0.5, rel=1e-4) for index, each in shares.items()}
    kinds = [type(event) for event in events if isinstance(event, Metric | Progress)]
    assert kinds == [Metric, Progress] * LAYERS  # each layer's as it is done


@pytest.mark.parametrize(
    "technique",
    [
        Sparsify(method="wanda", ratio=0.5),
        Palettize(bits=3, sensitivity="none"),
        LowRank(method="whitened", keep=0.6),
        Ptq(scheme="fp8", rounding="nearest", smoothing="none"),
    ],
    ids=lambda technique: technique.technique,
)
def test_other_passes_tell_a_number_for_each_layer(technique: Any, tiny_model: MakeModel, tmp_path: Path) -> None:
    found = told(heard(technique, tiny_model("Llama"), tmp_path / "out"), "reconstruction_error")
    assert list(found) == list(range(LAYERS))
    assert all(1e-3 < error < 1 for error in found.values())


def test_an_evaluation_tells_the_errors_of_its_report(tiny_model: MakeModel, tmp_path: Path) -> None:
    model, events = tiny_model("Llama"), list[AnyEvent]()
    heard(plain("int8"), model, tmp_path / "quantized")
    run = run_of(model, tmp_path / "quantized", tmp_path / "out", events)
    Fidelity(samples=2, sequence_length=48).measure(run)
    errors: Any = run.results["layer_errors"]
    assert told(events, "layer_error") == {index: error for index, (_, error) in enumerate(errors)}


def test_a_number_that_is_not_finite_is_not_said(tmp_path: Path) -> None:
    events: list[AnyEvent] = []
    run = run_of(tmp_path, tmp_path, tmp_path / "out", events)
    for value in (float("nan"), float("inf"), 1.0):
        run.metric("loss", value, 3)
    assert told(events, "loss") == {3: 1.0}
