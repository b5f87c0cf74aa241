"""Pruning to a target: shapes counted before they are written, and the one that is chosen among them."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from fixtures.training import Killed
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers.models.llama.modeling_llama import LlamaMLP

from optcore.calibration.text import Texts
from optcore.conductor import Emit
from optcore.errors import RecipeError
from optcore.evaluate.fidelity_stream import divergences
from optcore.evaluate.side_by_side import SideBySide
from optcore.events import AnyEvent, Progress
from optcore.references import Calibration
from optcore.restructure import latency
from optcore.restructure.candidates import written
from optcore.restructure.counted import Counter
from optcore.restructure.prune import prune_checkpoint
from optcore.restructure.shapes import Grid, Shape, grid_of, meeting
from optcore.run import Run
from optcore.stage import EvaluateWork, TechniqueWork, environment
from optcore.streaming.decoder import Decoder
from optcore.techniques import Prune

TEXT = Calibration(dataset="python-stdlib", samples=4, sequence_length=32)
SMALL = {"ffn": 4, "hidden": 2, "depth": 1, "most_depth": 0.5, "samples": 2, "sequence_length": 32, "steps": 0}
LEARNS = {**SMALL, "ffn": 2, "steps": 1, "batch": 2, "candidates": 2}
ANY = {"order": "random", "rescale": False, "ends": True}


@pytest.mark.parametrize(
    ("family", "shapes"),
    [
        ("Llama", [Shape(), Shape(1), Shape(0, 0.4, 0.4, 0.4), Shape(1, 0.4, 0.0, 0.2)]),
        ("Qwen2", [Shape(0, 0.4, 0.4, 0.4)]),  # tied embeddings, biases
        ("Phi3", [Shape(1, 0.4, 0.4, 0.2)]),  # fused matrices
        ("Mixtral", [Shape(0, 0.4, 0.0, 0.4)]),
        ("GptOss", [Shape(0, 0.0, 0.4, 0.2)]),  # experts in one tensor
    ],
)
def test_what_is_counted_is_what_is_written(
    family: str, shapes: list[Shape], tiny_model: MakeModel, tmp_path: Path
) -> None:
    source = tiny_model(family)
    prune = _prune(ANY, {**SMALL, "ffn": 2, "hidden": 1, "heads": 1})
    run = _run(source, tmp_path / "asked")
    decoder = Decoder(source)
    grid = grid_of(run, decoder, prune)
    counter = Counter(decoder, prune, grid)
    for number, shape in enumerate(shapes):
        own = _run(source, tmp_path / str(number))
        prune_checkpoint(own, shape.asked(prune))
        assert written(own.out) == counter.size(shape)
    assert counter.size(Shape()) == written(source)


def test_what_cannot_be_cut_stays_whole(tiny_model: MakeModel, tmp_path: Path) -> None:
    run = _run(tiny_model("Gemma2"), tmp_path / "out")
    grid = grid_of(run, Decoder(run.checkpoint), _prune(ANY, SMALL))
    assert grid.hidden == [0.0]
    assert len(grid.ffn) == 5
    assert any("`hidden` stays whole" in said for said in run.results["notices"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("limit", [3.0, 14.0, 25.5, 40.0, 63.0])
def test_shapes_that_meet_a_limit_are_those_of_brute_force(limit: float) -> None:
    grid = Grid([0, 1, 3], [0.0, 0.2, 0.4], [0.0, 0.25], [0.0, 0.1, 0.2, 0.3, 0.4], {})

    def cost(shape: Shape) -> float:
        return (8 - shape.depth) * (1 - shape.hidden) * (3 * (1 - shape.heads) + 5 * (1 - shape.ffn))

    meets = [Shape(*cuts) for cuts in product(*grid[:4]) if cost(Shape(*cuts)) <= limit]
    expected = {
        one
        for one in meets
        if not any(other != one and all(a <= b for a, b in zip(other, one, strict=True)) for other in meets)
    }
    found = meeting(grid, cost, limit)
    assert set(found) == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize("target", [{"params": 0.8}, {"bytes": 1_200_000}])
def test_the_best_as_cut_is_what_brute_force_finds(
    target: dict[str, float], tiny_model: MakeModel, tmp_path: Path
) -> None:
    source = tiny_model("Llama")
    prune = Prune.model_validate({"target": target, "search": SMALL, "ends": True})
    run = _run(source, tmp_path / "out")
    prune.apply(run)
    rows = _rows(run)
    whole, limit = (run.results["search"][name] for name in ("whole", "limit"))  # type: ignore[index]
    measure = next(iter(target))
    assert whole == written(source)[measure == "bytes"]
    assert limit == (0.8 * whole if measure == "params" else 1_200_000)
    windows_ST = Texts(source, TEXT, ()).later_windows(4 * 32, 2, 32)
    by_hand: dict[float, Path] = {}
    for number, row in enumerate(rows):
        own = _run(source, tmp_path / str(number))
        prune_checkpoint(own, Shape(**row["shape"]).asked(prune))
        assert (row["params"], row["bytes"]) == written(own.out)
        assert row[measure] <= limit
        by_hand[_kl(own, windows_ST)] = own.out
    assert [row["kl"] for row in rows] == pytest.approx(sorted(by_hand), rel=1e-5)
    assert len(rows) >= 2
    chosen, expected = (load_file(folder / "model.safetensors") for folder in (run.out, by_hand[min(by_hand)]))
    assert chosen.keys() == expected.keys()
    assert all(torch.equal(chosen[name], expected[name]) for name in chosen)


def test_what_is_compared_on_is_behind_what_is_ranked_by(stdlib_model: Path) -> None:
    texts = Texts(stdlib_model, TEXT.model_copy(update={"samples": 6}), ())
    assert torch.equal(texts.later_windows(4 * 32, 2, 32), texts.calibration_windows(32)[4:])


def test_a_search_that_was_killed_goes_on_behind_the_last_shape(tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tiny_model("Llama")
    prune = Prune.model_validate({"target": {"params": 0.8}, "search": LEARNS, "ends": True})
    whole, events = _run(source, tmp_path / "whole"), list[AnyEvent]()
    whole.emit = events.append
    prune.apply(whole)
    count = len(_rows(whole))
    passed = [event.done for event in events if isinstance(event, Progress) and event.phase == "searching"]
    assert passed == [*range(1, count + 1), 1, 2]
    distilled = [row["distilled_kl"] for row in _rows(whole)]
    assert count >= 3
    assert distilled[0] == min(distilled[:2])
    assert distilled[2:] == [None] * (count - 2)

    for done in (2, 1):  # among the cuts, then between the two that are distilled
        killed = _run(source, tmp_path / "killed")
        killed.emit = _ending_at(done)
        with pytest.raises(Killed):
            prune.apply(killed)
    assert killed.journal is not None
    known = {path.name: path.stat().st_mtime_ns for path in killed.journal.glob("*.json")}
    assert len(known) == count + 1
    again = _run(source, tmp_path / "killed")
    prune.apply(again)
    assert {name: (killed.journal / name).stat().st_mtime_ns for name in known} == known
    assert _rows(again) == _rows(whole)
    assert again.results["series"] == whole.results["series"]
    assert not [path for path in killed.journal.iterdir() if path.is_dir()]


def test_a_latency_is_met_as_measured(tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a millisecond a layer: a real one is slow when the machine is busy."""
    source, ticks, forward = tiny_model("Llama"), [0], LlamaMLP.forward

    def counted(*args: Any, **named: Any) -> Any:
        ticks[0] += 1
        return forward(*args, **named)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: ticks[0] / 1000))
    settings = {"target": {"latency": 0.8}, "search": {**SMALL, "ffn": 0, "hidden": 0}, **ANY}
    run = _run(source, tmp_path / "out")
    Prune.model_validate(settings).apply(run)
    (row,) = _rows(run)
    found: Any = run.results["search"]
    assert row["shape"]["depth"] == 1
    assert row["latency"] == pytest.approx(found["whole"] - 1)
    assert 0 < row["latency"] <= found["limit"] == pytest.approx(0.8 * found["whole"])
    assert any("on this machine" in said for said in run.results["notices"])  # type: ignore[attr-defined]


def test_only_a_latency_ties_a_result_to_its_machine() -> None:
    machine = environment(EvaluateWork(evaluators=()))["machine"]
    for target, expected in (({"latency": 0.8}, machine), ({"params": 0.8}, None)):
        work = TechniqueWork(technique=Prune.model_validate({"target": target}))
        assert environment(work).get("machine") == expected


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"params": 0.3}, r"no shape within the search's limits has .*: the smallest has [\d,]+, 0"),
        ({"params": 1}, "meets the target already"),
        ({"bytes": 1e9}, "meets the target already"),
    ],
)
def test_targets_that_cannot_be_met_are_refused_before_any_text_is_read(
    target: dict[str, float], message: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    run = _run(tiny_model("Llama"), tmp_path / "out")
    events: list[AnyEvent] = []
    run.emit = events.append
    with pytest.raises(RecipeError, match=message):
        Prune.model_validate({"target": target, "search": SMALL}).apply(run)
    assert events == []


@pytest.mark.parametrize(("task", "target"), [("text-classification", "params"), ("fill-mask", "latency")])
def test_tasks_without_an_answer_are_refused(task: Any, target: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    run = _run(tiny_model("Llama"), tmp_path / "out")
    run.task = task
    with pytest.raises(RecipeError, match=r"labels|does not generate"):
        Prune.model_validate({"target": {target: 0.8}}).apply(run)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": {"params": 0.7}, "ffn": {"ratio": 0.5}}, "finds out what is cut"),
        ({"target": {"params": 0.7}, "depth": 1}, "finds out what is cut"),
        ({"target": {"params": 0.7, "bytes": 0.7}}, "give one of"),
        ({"target": {}}, "give one of"),
        ({"depth": 1, "search": {"steps": 0}}, "nothing without `target`"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Prune.model_validate(settings)


def test_the_rival_meets_the_same_target_at_random() -> None:
    prune = Prune.model_validate({"target": {"params": 0.7}})
    rival = prune.rival
    assert rival is not None
    assert (rival.order, rival.search.steps, rival.target) == ("random", 0, prune.target)
    assert Prune.model_validate({"target": {"params": 0.7}, "order": "random"}).rival is None
    assert Prune.model_validate(prune.model_dump(mode="json")) == prune
    assert prune.summary == "pruned to 0.7 of its parameters, chosen by a search"


def _prune(settings: dict[str, Any], search: dict[str, Any]) -> Prune:
    return Prune.model_validate({"target": {"params": 0.7}, **settings, "search": search})


def _run(source: Path, out: Path) -> Run:
    torch.set_num_threads(1)
    return run_of(source, source, out, calibration=TEXT)


def _rows(run: Run) -> list[Any]:
    rows = run.results["candidates"]
    assert isinstance(rows, list)
    return rows


def _kl(run: Run, windows_ST: torch.Tensor) -> float:
    """Of what the run wrote, to what it read."""
    models = SideBySide(run_of(run.checkpoint, run.out, run.scratch / "measured"))
    models.walk([windows_ST])
    return divergences(models, windows_ST)["result"].mean_kl


def _ending_at(done: int) -> Emit:
    """Ends a run once so many shapes are compared."""

    def emit(event: AnyEvent) -> None:
        if isinstance(event, Progress) and (event.phase, event.done) == ("searching", done):
            raise Killed

    return emit
