"""What people see: tables as text and HTML, stages with the time left, and all of it in a notebook."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from scripted_server import Script, cut_after, job_document, page, scripted, status

from lathe import Measurements, Report
from lathe.display import screen
from lathe.display.cells import Bar
from lathe.display.grid import Grid
from lathe.display.stages import StagesView
from lathe.display.transfer import TransferView
from lathe.display.watching import bytes_shown, events_shown
from lathe.models import Artifact, JobEvent
from optcore.report import Measurement

ROW = {"name": "bytes", "title": "Size", "unit": "bytes", "source": 1e7, "result": 3e6, "better": "lower"}
KL = {"name": "kl", "title": "KL", "source": None, "baseline": 0.2, "result": 0.1, "better": "lower"}
EVIL = "\x1b[2J<script>alert(1)</script>[red]"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_grid_is_text_and_html_and_words_from_elsewhere_are_harmless_in_both() -> None:
    grid = Grid(("name", "size"), [("a", 1), (EVIL, Bar(1, 4))], numbers=(1,))
    text, html = str(grid), grid._repr_html_()
    assert text.splitlines()[0].split() == ["name", "size"]
    assert "\x1b" not in text + html
    assert "[red]" in text
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert '<progress max="4" value="1">' in html
    assert html.count("text-align:right") == 3


def test_measurements_are_a_table_and_a_sequence() -> None:
    rows = Measurements([Measurement.model_validate(ROW), Measurement.model_validate(KL)])
    assert (len(rows), rows["kl"].result, rows[0].name, rows[:1][0].name) == (2, 0.1, "bytes", "bytes")
    with pytest.raises(KeyError, match="no measurement 'x'; there are bytes, kl"):
        rows["x"]
    for words in ("Size", "10 MB", "3 MB", "-70.0%", "better", "max scales"):
        assert words in str(rows)
        assert words in rows._repr_html_()
    assert repr(rows) == str(rows)
    assert rows == Measurements(list(rows))


def test_a_report_of_a_newer_engine_shows_what_can_be_read() -> None:
    report = Report({"measurements": [ROW, {"name": "odd"}, {**KL, "later": 1}], "model": EVIL, "future": 1})
    assert [row.name for row in report.measurements] == ["bytes", "kl"]
    assert report.unread == 1
    assert report["future"] == 1
    assert "<script>" not in report._repr_html_()
    assert Report({})._repr_html_().count("<table") == 0


def _estimated(**seconds: float) -> dict[str, Any]:
    stages = [
        {"stage": name, "seconds": each, "seconds_low": each / 2, "seconds_high": each * 2}
        for name, each in seconds.items()
    ]
    return {"machine": {}, "stages": stages}


def test_the_time_left_follows_the_estimate_and_the_pace_whichever_is_later() -> None:
    clock = Clock()
    view = StagesView(clock)
    view.feed("run_planned", {"stages": ["a", "b"]})
    assert view.left() is None
    assert view.feed("run_estimated", _estimated(a=60, b=40)) == "expected: 1 min 40 s (50 s to 3 min 20 s)"
    view.feed("stage_started", {"stage": "a", "key": "k"})
    clock.now += 10
    assert view.left() == 90
    view.feed("progress", {"stage": "a", "phase": "calibrating", "done": 4, "total": 24})
    clock.now += 10
    view.feed("progress", {"stage": "a", "phase": "calibrating", "done": 6, "total": 24})
    assert view.left() == 90 + 40  # five seconds for each of 18, and b
    assert "1 min 30 s left" in str(view.grid())
    view.feed("stage_finished", {"stage": "a", "key": "k", "cached": False, "seconds": 20.0, "peak_memory_bytes": 5e6})
    assert view.left() == 40
    assert "20 s, 5 MB peak" in str(view.grid())
    ended = {"stage": "a", "key": "k", "cached": False, "seconds": 20.0, "peak_memory_bytes": 5e6}
    view.feed("stage_finished", {**ended, "peak_gpu_memory_bytes": 7e6})
    assert "20 s, 5 MB, GPU 7 MB peak" in str(view.grid())
    view.feed("stage_started", {"stage": "b", "key": "k"})
    clock.now += 100
    assert view.left() == 0
    view.feed("job.failed", {})
    assert view.left() is None


@pytest.mark.parametrize("event", ["run_failed", "job.failed", "job.cancelled", "job.paused"])
def test_a_run_that_has_stopped_promises_no_time(event: str) -> None:
    view = StagesView(Clock())
    view.feed("run_planned", {"stages": ["a", "b"]})
    view.feed("run_estimated", _estimated(a=60, b=600))
    view.feed("stage_started", {"stage": "a"})
    said = view.feed(event, {})
    assert view.left() is None
    assert "left" not in str(view.grid())
    assert str(view.grid()).split()[:2] == ["a", said]


@pytest.mark.parametrize("end", ["", "job.failed", "job.paused"])
def test_a_stage_whose_attempt_was_lost_waits_for_the_next(end: str) -> None:
    clock = Clock()
    view = StagesView(clock)
    view.feed("run_planned", {"stages": ["a", "b"]})
    view.feed("run_estimated", _estimated(a=60, b=600))
    view.feed("stage_started", {"stage": "a"})
    view.feed("progress", {"stage": "a", "phase": "calibrating", "done": 4, "total": 24})
    view.feed(end, {})
    assert view.feed("job.queued", {"reason": "lost"}) == "queued"
    clock.now += 1000
    assert view.left() is None
    assert [line.split()[:4] for line in str(view.grid()).splitlines()] == [
        ["a", "pending", "about", "60"],
        ["b", "pending", "about", "10"],
    ]
    view.feed("run_planned", {"stages": ["a", "b"]})
    assert view.left() == 660
    view.feed("stage_started", {"stage": "a"})
    clock.now += 10
    assert view.left() == 650


def test_without_an_estimate_the_pace_of_the_phase_is_told() -> None:
    clock = Clock()
    view = StagesView(clock)
    view.feed("progress", {"stage": "a", "phase": "training", "done": 0, "total": 10})
    clock.now += 20
    view.feed("progress", {"stage": "a", "phase": "training", "done": 2, "total": 10})
    assert "80 s left" in str(view.grid())
    assert view.left() is None


def test_a_clock_of_the_service_that_is_wrong_does_not_matter() -> None:
    clock = Clock()
    view = StagesView(clock)
    hour = 3600.0
    view.feed("run_estimated", _estimated(a=60), clock.now - hour)
    view.feed("stage_started", {"stage": "a"}, clock.now - hour)
    clock.now += 15
    assert view.left() == 45


def test_a_download_tells_bytes_speed_and_time_left() -> None:
    clock = Clock()
    sizes = {"a": 1000, "b": 9000, "c": 10_000}
    one, other, half = (Artifact(path=name, bytes=size, sha256="0" * 64) for name, size in sizes.items())
    view = TransferView([one, other, half], clock)
    view.feed(one, 1000)  # was here already
    view.feed(half, 8000)  # of it, these were
    assert "/s" not in str(view.grid())
    view.feed(other, 0)
    clock.now += 2
    view.feed(other, 1500)
    view.feed(half, 8500)
    shown = str(view.grid())
    for words in ("11 kB of 20 kB", "1 kB/s", "9 s left", "3/3 c"):
        assert words in shown
    assert '<progress max="20000" value="11000">' in view._repr_html_()


def test_where_nobody_looks_lines_are_written_and_bars_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[int] = []
    event = JobEvent(seq=1, at=datetime.now(UTC), type="stage_started", data={"stage": EVIL})
    with events_shown(True, lambda event: heard.append(event.seq)) as tell:
        assert tell is not None
        tell(event)
    said = capsys.readouterr()
    assert (said.out, heard) == ("", [1])
    assert "started" in said.err
    assert "\x1b" not in said.err
    artifact = Artifact(path="a", bytes=1, sha256="0" * 64)
    with bytes_shown([artifact], True) as tell_bytes:
        tell_bytes(artifact, 1)
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_the_stages_in_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(screen.errors, "_force_terminal", True)
    event = JobEvent(seq=1, at=datetime.now(UTC), type="run_planned", data={"stages": ["0-fetch", "1-ptq"]})
    with events_shown(True) as tell:
        assert tell is not None
        tell(event)
    assert "1-ptq" in capsys.readouterr().err


@pytest.fixture
def server() -> Iterator[Script]:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    history = [
        ("run_planned", {"stages": ["0-fetch", "1-ptq"]}),
        ("run_estimated", _estimated(**{"0-fetch": 5, "1-ptq": 50})),
        ("stage_started", {"stage": "0-fetch", "key": "k"}),
        ("stage_finished", {"stage": "0-fetch", "key": "k", "cached": True, "seconds": 0.1, "peak_memory_bytes": 1}),
        ("progress", {"stage": "1-ptq", "phase": "calibrating", "done": 1, "total": 4}),
        ("stage_finished", {"stage": "1-ptq", "key": "k", "cached": False, "seconds": 9.0, "peak_memory_bytes": 1}),
    ]
    events = [
        {"seq": seq, "at": (start + timedelta(seconds=seq)).isoformat(), "type": kind, "data": data}
        for seq, (kind, data) in enumerate(history, 1)
    ]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode()
    with scripted() as script:
        job = job_document(status="succeeded")
        script.on("GET /v1/jobs/job_1", status(200, job_document()), status(200, job_document()), status(200, job))
        half, whole = body[: len(body) // 2], status(200, body + b"event: end\n\n")
        script.on("GET /v1/jobs/job_1/events", cut_after(half), whole, status(200, page(*events)))
        yield script.on("GET /v1/jobs/job_1/report", status(200, {"measurements": [ROW, KL], "model": "m"}))


def test_a_notebook_shows_the_stages_in_place_and_ends_with_the_table(server: Script) -> None:
    cells = [
        f"import lathe\njob = lathe.Client({server.url!r}).jobs.get('job_1')\njob = job.watch()",
        "job.measurements()",
        "await (await lathe.AsyncClient(" + repr(server.url) + ").jobs.get('job_1')).result(progress=True)\nNone",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=60).execute()
    watched, table, waited = (cell.outputs for cell in notebook.cells)
    assert [output.output_type for output in watched] == ["display_data", "display_data"]
    stages, report = (output.data["text/html"] for output in watched)
    assert ">cached</span>" in stages
    assert ">succeeded</span>" in stages
    assert "9 s" in stages
    assert "10 MB" in report
    assert "-70.0%" in table[0].data["text/html"]
    assert "-70.0%" in table[0].data["text/plain"]
    assert ">succeeded</span>" in waited[0].data["text/html"]
