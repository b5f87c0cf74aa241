"""The table of the engines, in a terminal, on the Hub, in a browser and in the command line's words."""

import pytest

from lathe.cli.output import print_measurements
from optcore.report import EngineRun, Report
from optcore.report.card import render_card
from optcore.report.engines import engine_note, engine_rows
from optcore.report.page import render_page
from optcore.report.text import render_table

HOSTILE = "x|y`<script src=//evil.example>\n---\x1b[31m&lt; {{ 7*7 }}"
SOURCE = EngineRun(
    engine="transformers",
    engine_version="5.17.0",
    target="dense",
    is_source=True,
    file_bytes=10_500_000,
    threads=2,
    prompt_tokens=128,
    new_tokens=32,
    load_seconds=0.3,
    prefill_speed=2500,
    decode_speed=160.5,
    peak_memory_bytes=391_000_000,
    kl=1.8e-4,
    agreement=0.994,
    positions=1024,
)
SERVED = SOURCE.model_copy(update={"engine": "llama.cpp", "target": "gguf", "is_source": False, "kl": 0.0125})
LABELS = SERVED.model_copy(update={"decode_speed": None, "kl": None, "agreement": None, "result": "int8-onnx"})


def report(*runs: EngineRun) -> Report:
    return Report(model="m", source_digest="a" * 64, artifact_digest="b" * 64, scheme="s", recipe={}, engine_runs=runs)


def test_a_row_says_what_ran_where_and_how_it_did() -> None:
    header, *rows = engine_rows((SOURCE, SERVED, LABELS))
    assert [row[0] for row in rows] == [
        "transformers 5.17.0: source",
        "llama.cpp 5.17.0: gguf",
        "llama.cpp 5.17.0: int8-onnx",
    ]
    found = dict(zip(header[1:], rows[1][1:], strict=True))
    assert found == {
        "Weights": "10.5 MB",
        "Load": "0.3 s",
        "Prefill": "2,500 tokens/s",
        "Decode": "160.5 tokens/s",
        "Peak memory": "391 MB",
        "KL to the source": "0.0125 nats",
        "Agreement": "99.4%",
    }
    assert rows[2].count("–") == 3  # noqa: RUF001
    assert engine_rows(()) == []


def test_the_note_says_how_it_was_measured() -> None:
    assert "threads: 2; a prompt of 128 tokens, then 32 written greedily" in engine_note((SOURCE,))
    encoder = SOURCE.model_copy(update={"new_tokens": 0})
    assert "a prompt of 128 tokens, the median" in engine_note((encoder,))
    assert engine_note(()) == ""


@pytest.mark.parametrize("render", [render_table, render_card, render_page])
def test_every_renderer_shows_it_and_only_where_there_is_one(render: object) -> None:
    assert callable(render)
    assert "0.0125 nats" in render(report(SOURCE, SERVED)).replace("\\", "")
    assert "KL to the source" not in render(report())


def test_hostile_names_are_text() -> None:
    hostile = report(SERVED.model_copy(update={"result": HOSTILE}))
    assert "<script src" not in render_page(hostile)
    assert "<script" not in render_card(hostile)
    assert "\x1b" not in render_table(hostile)
    card = [line for line in render_card(hostile).splitlines() if line.startswith("| llama")]
    assert len(card) == 1


def test_the_command_line_prints_it_and_leaves_out_what_it_cannot_read(capsys: pytest.CaptureFixture[str]) -> None:
    newer = SERVED.model_dump() | {"more": 1}
    print_measurements({"engine_runs": [SOURCE.model_dump(), newer, {"engine": "other"}]})
    printed = capsys.readouterr()
    assert "llama.cpp" in printed.out
    assert "cannot read was left out" in printed.err
