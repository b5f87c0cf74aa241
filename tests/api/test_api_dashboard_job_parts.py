"""The parts of a job's page that are computed: the timeline, gates, plots, the log's text."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from job_scenes import GATED, expected, gated

from api.dashboard import gates, lineage, log_text, plots, timeline
from api.dashboard.remaining import Remaining, remaining
from lathe.models import Job, JobEvent, MetricCurve, Stage
from optcore.recipe import recipe_from
from optcore.report import LayerError, Report

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def _event(type: str, seconds: float, **data: Any) -> JobEvent:
    return JobEvent(seq=1, at=BEGIN + timedelta(seconds=seconds), type=type, data=data)


def test_a_wait_of_days_does_not_hide_the_work() -> None:
    day = 86400
    history = [
        _event("job.queued", 0),
        _event("job.running", 10),
        _event("stage_started", 10, stage="a"),
        _event("job.paused", 110),
        _event("job.queued", 110 + 3 * day, reason="resumed"),
        _event("job.running", 120 + 3 * day),
        _event("stage_started", 120 + 3 * day, stage="a"),
    ]
    drawn = timeline.draw(history, ["a", "b"], BEGIN + timedelta(seconds=220 + 3 * day))
    assert drawn is not None
    assert drawn.cut
    assert drawn.grows
    first, second = drawn.stages["a"]
    assert (first.kind, second.kind) == ("paused", "running")
    assert (first.start, first.end) == (10, 110)
    assert second.end == pytest.approx(drawn.total)
    assert drawn.total == pytest.approx(10 + 100 + 0.15 * 200 + 10 + 100)
    assert drawn.stages["b"] == ()
    assert drawn.width(timeline.Bar("cached", "", 5, 5)) == "0.500%", "what took no time is seen too"
    over = [*history, _event("job.failed", 230 + 3 * day)]
    assert not timeline.draw(over, ["a"], BEGIN + timedelta(days=400)).grows  # type: ignore[union-attr]


def test_there_is_no_timeline_before_anybody_worked() -> None:
    assert timeline.draw([], [], BEGIN) is None
    assert timeline.draw([_event("job.queued", 0)], [], BEGIN) is None


def _job(*stages: Stage) -> Job:
    return Job.model_construct(stages=stages)


def test_what_is_left_is_the_pace_of_this_stage_and_the_estimates_of_those_to_come() -> None:
    foreseen = {each.stage: each for each in expected({"b": 40, "c": 7}).stages}
    now = BEGIN + timedelta(seconds=30)
    done = Stage(name="a", status="succeeded")
    paced = Stage(name="b", status="running", started_at=BEGIN, done=3, total=4, estimate=foreseen["b"])
    coming = Stage(name="c", status="pending", estimate=foreseen["c"])
    assert remaining(_job(done, paced, coming), now) == Remaining(10 + 7, whole=True)
    assert remaining(_job(paced, coming, Stage(name="d", status="pending")), now) == Remaining(10, whole=False)
    silent = paced.model_copy(update={"done": 0})
    assert remaining(_job(silent, coming), now) == Remaining(40 - 30 + 7, whole=True)
    assert remaining(_job(silent, coming), BEGIN + timedelta(seconds=41)) is None, "the estimate has failed"
    assert remaining(_job(done, coming), now) is None, "nothing runs"


def _pinned(submitted: dict[str, Any], resolved: dict[str, Any] | None) -> list[str]:
    job = Job.model_construct(recipe=recipe_from(submitted), resolved=resolved)
    return [line.text.strip() for line in lineage.recipe(job).lines if line.pinned]


def test_lines_that_are_not_what_was_submitted_are_marked(document: dict[str, Any]) -> None:
    assert _pinned(document, None) == []
    assert _pinned(document, recipe_from(document).model_dump(mode="json")) == []
    long = {"name": "a long name, " * 12, "metadata": {"a/b~c": "x: 1\ny", "d": "e"}}
    marked = _pinned(document, {**document, **long})
    assert [line.split()[0] for line in marked if line] == ["name:", "a", "a/b~c:", "y'", "d:"], "a value of two lines"


def test_many_lines_that_are_alike_are_compared_in_no_time(document: dict[str, Any]) -> None:
    alike = {**document, "chain": [{"technique": "attention_window", "window": 8, "layers": [0] * 1000}] * 16}
    resolved = recipe_from(alike).model_dump(mode="json")
    resolved["model"] = {"id": "org/model", "revision": "a" * 40}
    begun = time.process_time()
    assert f"revision: {'a' * 40}" in _pinned(alike, resolved)
    assert time.process_time() - begun < 5, "their number's square takes far longer"


def test_gates_are_told_from_what_was_measured() -> None:
    recipe = gated()
    assert gates.metrics_of(recipe) == [("1-ptq-gate", "kl"), ("1-ptq-fallback1-gate", "kl")]
    (waiting,) = gates.held(recipe, None, {})
    assert (waiting.state, waiting.asked, waiting.then) == (
        "waiting",
        "at most 0.05 nats/token",
        "if missed: the next candidate",
    )
    missed, following = gates.held(recipe, None, {("1-ptq-gate", "kl"): 0.07})
    assert (missed.state, missed.value, missed.then) == ("missed", "0.07 nats/token", "went on to 1-ptq-fallback1")
    assert following.state == "waiting"
    both = gates.held(recipe, None, {("1-ptq-gate", "kl"): 0.07, ("1-ptq-fallback1-gate", "kl"): 0.01})
    assert [each.state for each in both] == ["missed", "passed"]
    (passed,) = gates.held(recipe, None, {("1-ptq-gate", "kl"): 0.05})
    assert (passed.state, passed.then) == ("passed", "kept")
    stopping = recipe_from(
        {**GATED, "chain": [{"technique": "ptq", "scheme": "fp8", "gate": {"metric": "kl", "max": 0.1}}]}
    )
    assert gates.held(stopping, None, {("1-ptq-gate", "kl"): 0.2})[0].then == "stopped"


def _curve(name: str, *means: float, **more: Any) -> MetricCurve:
    steps = tuple(range(len(means)))
    columns = dict.fromkeys(("mean", "low", "high", "last"), means)
    return MetricCurve(stage="2-qad", name=name, first_step=steps, last_step=steps, **{**columns, **more})


def test_curves_of_one_unit_share_a_plot() -> None:
    loss, rate = _curve("loss", 3, 1, 2), _curve("learning_rate", 1e-5, 1e-4, 0)
    first, second = plots.of_metrics([rate, loss, _curve("validation_kl", 3, 2, 1), _curve("bits", 4)])
    assert [line.label for line in first.lines] == ["loss", "validation kl"]
    assert (first.lines[0].last.value, first.lines[0].best) == (2, plots.Value(1, 1))
    assert (second.title, second.lines[0].best) == ("Learning rate", None)
    assert plots.single([_curve("bits", 4)]) == [("2-qad", "bits", "4")]
    assert "last 2 at step 2" in first.said


def test_layers_and_seconds_have_axes_of_their_own() -> None:
    host, gpu = _curve("memory_bytes", 4e8, 1.25e9), _curve("gpu_memory_bytes", 0, 5e9)
    layers, memory = plots.of_metrics([host, gpu, _curve("reconstruction_error", 0.02, 0.01)])
    assert (layers.title, layers.unit, layers.x) == ("Reconstruction error by layer", "relative error", "layer")
    assert (memory.title, memory.x, [line.label for line in memory.lines]) == (
        "Memory in use",
        "second",
        ["host", "GPU"],
    )
    assert "host: last 1.25 GB at second 1" in memory.said
    assert json.loads(memory.data)["inBytes"]
    assert not json.loads(layers.data)["inBytes"]
    assert plots.single([_curve("memory_bytes", 4e8)]) == []


def test_errors_by_layer_are_drawn_once() -> None:
    errors = [LayerError(layer=f"layer {i}", relative_error=0.1 * i) for i in range(2)]
    report = Report.model_construct(layer_errors=tuple(errors))
    assert plots.of_layers(report, [_curve("layer_error", 0.0, 0.1)]) is None
    assert plots.of_layers(report, [_curve("layer_error", 0.0, 0.2)]) is not None


def test_a_curve_that_was_thinned_has_a_band() -> None:
    (plot,) = plots.of_metrics([_curve("loss", 2, 1, low=(1, 0.5), high=(3, 2))])
    assert json.loads(plot.data)["lines"] == [
        {"label": "loss", "x": [0, 1], "mean": [2, 1], "low": [1, 0.5], "high": [3, 2]}
    ]
    assert plot.lines[0].best == plots.Value(0.5, 1)


def test_a_terminals_colours_are_not_shown() -> None:
    assert log_text.readable("\x1b[1;31mbad\x1b[0m\r\n10%\r20%\r\n\x00") == "bad\n10%\n20%\n�"
