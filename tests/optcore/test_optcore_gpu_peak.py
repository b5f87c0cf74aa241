"""The peak on a GPU on its way from a stage's process to its record, its event and the report's table.

There is no GPU here: the one thing given by hand is what the stage's process is said to have left.
"""

from pathlib import Path

import pytest

from optcore import conductor
from optcore.child import RESULTS, Usage
from optcore.conductor import Conductor
from optcore.estimate.document import StageEstimate
from optcore.events import AnyEvent, StageFinished, parse_event
from optcore.report import Report, StageCost
from optcore.report.expected import expected_rows
from optcore.report.text import render_table
from optcore.stage import StageRecord, StageTask, TechniqueWork
from optcore.techniques import Ptq
from optcore.work import WorkFolder


def test_a_peak_is_kept_with_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def left(task: StageTask, task_file: Path, _: object) -> Usage:
        task_file.with_name(RESULTS).write_text("{}")
        return Usage(10**9, 5 * 10**9)

    monkeypatch.setattr(conductor, "run_stage", left)
    for cached in (False, True):
        events: list[AnyEvent] = []
        walk = Conductor(WorkFolder(tmp_path), events.append)
        record = walk.stage("1-ptq", TechniqueWork(technique=Ptq(scheme="int8")))
        assert (record.peak_memory_bytes, record.peak_gpu_memory_bytes) == (10**9, 5 * 10**9)
        (ended,) = (event for event in events if isinstance(event, StageFinished))
        assert (ended.cached, ended.peak_gpu_memory_bytes) == (cached, 5 * 10**9)
        assert parse_event(ended.model_dump_json()) == ended
        assert walk.costs[0].peak_gpu_memory_bytes == 5 * 10**9


def test_what_was_written_before_it_was_measured_is_read() -> None:
    old = '{"name": "1-ptq", "key": "k", "seconds": 1.5, "peak_memory_bytes": 7}'
    assert StageRecord.model_validate_json(old).peak_gpu_memory_bytes is None
    assert StageCost.model_validate_json('{"name": "1-ptq", "seconds": 1, "peak_memory_bytes": 7}').cached is False
    said = '{"event":"stage_finished","stage":"1-ptq","key":"k","cached":false,"seconds":1.5,"peak_memory_bytes":7}'
    event = parse_event(said)
    assert isinstance(event, StageFinished)
    assert event.peak_gpu_memory_bytes is None


def _report(*, gpu_expected: int, gpu_peak: int | None) -> Report:
    sizes = {"host_memory_bytes": 10**9, "raw_memory_bytes": 10**9, "gpu_memory_bytes": gpu_expected}
    times = dict.fromkeys(("seconds", "seconds_low", "seconds_high", "raw_seconds"), 2.0)
    told = StageEstimate(stage="1-ptq", kind="ptq", **times, **sizes)
    took = StageCost(name="1-ptq", seconds=3, peak_memory_bytes=2 * 10**9, peak_gpu_memory_bytes=gpu_peak)
    named = dict.fromkeys(("model", "scheme", "source_digest", "artifact_digest"), "m")
    return Report(**named, recipe={}, environment={}, stages=(took,), expected=(told,))


def test_a_report_holds_the_estimate_against_the_gpu() -> None:
    report = _report(gpu_expected=4 * 10**9, gpu_peak=5 * 10**9)
    header, row = expected_rows(report)
    assert header[-2:] == ["GPU memory expected", "Took"]
    assert row[-4:] == ["1 GB", "2 GB", "4 GB", "5 GB"]
    assert "2 GB, GPU 5 GB" in render_table(report)


def test_without_a_gpu_the_report_is_as_it_was() -> None:
    report = _report(gpu_expected=0, gpu_peak=None)
    header, row = expected_rows(report)
    assert header[-1] == "Took"
    assert len(header) == len(row) == 5
    assert "GPU" not in render_table(report)


def test_one_that_was_expected_and_not_used_says_so() -> None:
    assert expected_rows(_report(gpu_expected=4 * 10**9, gpu_peak=None))[1][-2:] == ["4 GB", "\N{EN DASH}"]
