"""Pruning and distillation together, beside what they must beat: `python3 dev.py proofs-restructure`.

On the shipped model; budget of a training run: 200 steps of 8 windows of 128 tokens at 5e-4. Held out: 64 windows of
128 tokens that no stage has seen. KL in nats a token to the shipped model; a share recovered is of the pruned one's.
"""

from collections.abc import Callable
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from fixtures.exporting import run_of
from fixtures.training import prepared
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from optcore.engine import optimize
from optcore.evaluate.fidelity_stream import compare
from optcore.links import link_companions
from optcore.recipe import recipe_from
from optcore.references import Calibration
from optcore.report import Report
from optcore.report.text import render_table
from optcore.restructure.influence import influences
from optcore.restructure.left_out import costs
from optcore.sizes import parameters, weight_bytes
from optcore.streaming.decoder import Decoder
from optcore.techniques import Distill, Finetune, Prune

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
CALIBRATION = Calibration(dataset="python-stdlib", samples=64, sequence_length=128)
BUDGET: dict[str, Any] = {
    "steps": 200,
    "batch": 8,
    "sequence_length": 128,
    "learning_rate": 5e-4,
    "validation": {"samples": 32, "every": 50},
    "gradient_checkpointing": False,
}
HALF: dict[str, Any] = {"ffn": {"ratio": 0.5}}
QUARTER: dict[str, Any] = {"width": 0.25, "depth": 1}
RANDOM: dict[str, Any] = {"order": "random"}


class Found(NamedTuple):
    """Of a checkpoint, on held-out text."""

    kl: float
    agreement: float

    def line(self, name: str) -> str:
        return f"{name:<52} KL {self.kl:.5f}  top-1 {self.agreement:.2%}"


class Bench:
    """Prunes, trains and measures, each thing once."""

    def __init__(self, model: Path, folders: Callable[[str], Path]) -> None:
        self.model, self.folder = model, folders
        self.pruned, self.trained, self.found = cache(self._pruned), cache(self._trained), cache(self._found)

    def _pruned(self, settings: str) -> Path:
        run = run_of(self.model, self.model, self.folder("pruned") / "out", calibration=CALIBRATION)
        Prune.model_validate_json(settings).apply(run)
        return run.out

    def _trained(self, start: Path, technique: type[Distill] | type[Finetune] = Distill) -> Path:
        learning = technique.model_validate(BUDGET)
        folder = self.folder("trained")
        run = run_of(self.model, start, folder / "out", calibration=CALIBRATION)
        run.teacher = self.model
        prepared(run, learning, folder / "windows", calibration=CALIBRATION)
        learning.apply(run)
        return run.out

    def _found(self, checkpoint: Path) -> Found:
        run = run_of(self.model, checkpoint, self.folder("measured") / "out", calibration=CALIBRATION)
        result = compare(run, 64, 128)[0]["result"]
        return Found(result.mean_kl, result.agreement)


@pytest.fixture(scope="module")
def bench(stdlib_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    return Bench(stdlib_model, tmp_path_factory.mktemp)


def _settings(*parts: dict[str, Any]) -> str:
    merged: dict[str, Any] = {"technique": "prune"}
    for part in parts:
        merged |= part
    return Prune.model_validate(merged).model_dump_json(exclude_unset=True)


def test_b2_distillation_wins_back_half_of_the_ffn(bench: Bench) -> None:
    chosen, drawn = bench.pruned(_settings(HALF)), bench.pruned(_settings(HALF, RANDOM))
    before, distilled = bench.found(chosen), bench.found(bench.trained(chosen))
    drawn_distilled, tuned = bench.found(bench.trained(drawn)), bench.found(bench.trained(chosen, Finetune))
    recovered = 1 - distilled.kl / before.kl
    print(before.line("FFN 50 %, by activation x norm"))
    print(f"{distilled.line('distilled')}  recovered {recovered:.1%}")
    print(bench.found(drawn).line("FFN 50 %, at random"))
    print(drawn_distilled.line("at random, distilled"))
    print(tuned.line("by activation x norm, cross-entropy instead"))
    assert recovered >= 0.7
    assert distilled.kl < tuned.kl
    assert distilled.kl < drawn_distilled.kl


def test_b3_layers_go_by_what_they_change(bench: Bench) -> None:
    """Influence orders the layers that may go as what leaving out each of them costs, if costs within a quarter count
    as equal; distillation wins most of the loss back."""
    run = run_of(bench.model, bench.model, bench.folder("influence") / "out", calibration=CALIBRATION)
    decoder = Decoder(bench.model)
    influence, cost = influences(run, decoder), costs(run, decoder)
    for index, pair in enumerate(zip(influence, cost, strict=True)):
        print("layer {}: influence {:.4f}, KL without it {:.4f}".format(index, *pair))
    order = sorted(range(1, len(decoder) - 1), key=influence.__getitem__)
    shallow = {ranked: bench.pruned(_settings({"depth": 1, "order": ranked})) for ranked in ("influence", "divergence")}
    found = {ranked: (bench.found(one), bench.found(bench.trained(one))) for ranked, one in shallow.items()}
    recovered = {ranked: 1 - after.kl / before.kl for ranked, (before, after) in found.items()}
    for ranked, (before, after) in found.items():
        print(before.line(f"one layer of least {ranked} left out"))
        print(f"{after.line('distilled')}  recovered {recovered[ranked]:.1%}")
    assert recovered["influence"] >= 0.6
    assert all(better.kl < worse.kl for better, worse in zip(found["divergence"], found["influence"], strict=True))
    assert all(cost[first] <= 1.25 * cost[later] for first, later in combinations(order, 2))


def test_pruned_and_distilled_beats_what_is_as_large(bench: Bench) -> None:
    """At equal bytes and equal training tokens: chosen, drawn at random, and random weights of the same shape."""
    chosen, drawn = bench.pruned(_settings(QUARTER)), bench.pruned(_settings(QUARTER, RANDOM))
    untrained = _untrained(chosen, chosen.parent / "untrained")
    starts = {"chosen": chosen, "at random": drawn, "random weights": untrained}
    assert len({(parameters(start), weight_bytes(start)) for start in starts.values()}) == 1
    ends = {name: bench.found(bench.trained(start)) for name, start in starts.items()}
    print(f"{parameters(bench.model)} -> {parameters(chosen)} parameters, {weight_bytes(chosen)} bytes")
    for name, start in starts.items():
        print(bench.found(start).line(f"width 25 %, depth 1, {name}"))
        print(ends[name].line("  distilled"))
    assert ends["chosen"].kl < ends["at random"].kl
    assert ends["chosen"].kl < ends["random weights"].kl


def _untrained(shape: Path, out: Path) -> Path:
    """Weights as transformers draws them, for the configuration of `shape`."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(shape), dtype=torch.bfloat16)
    out.mkdir()
    link_companions(shape, out)
    save_file(dict(model.named_parameters()), out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_one_recipe_prunes_distils_and_quantizes(stdlib_model: Path, tmp_path: Path) -> None:
    """The whole chain on the demo model; its table says what each entry bought and cost."""
    document = yaml.safe_load((ROOT / "docs" / "recipes" / "prune-distill-int4.yaml").read_text())
    recipe = recipe_from(document | {"model": {"path": str(stdlib_model)}})
    optimize(recipe, tmp_path / "out", tmp_path / "work", lambda _: None)
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_text())
    print(render_table(report))
    source, rival, pruned, distilled, result = report.steps
    assert [step.stage for step in report.steps] == ["", "1-prune-rival", "1-prune", "2-distill", "export"]
    assert source.parameters > pruned.parameters == rival.parameters == distilled.parameters == result.parameters
    assert source.weight_bytes > pruned.weight_bytes == distilled.weight_bytes > result.weight_bytes
    assert distilled.values["mean_kl"] < 0.3 * pruned.values["mean_kl"] < 0.3 * rival.values["mean_kl"]
    assert distilled.values["mean_kl"] < result.values["mean_kl"] < pruned.values["mean_kl"]
    assert all(step.values["perplexity"] > 1 for step in report.steps)
