"""The report as data, and how its numbers are written."""

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from optcore.report import Measurement, Report
from optcore.report.numbers import (
    NOTHING,
    format_bytes,
    format_change,
    format_number,
    format_seconds,
    format_value,
    verdict,
)


def row(source: float | None, result: float | None, **more: object) -> Measurement:
    return Measurement.model_validate({"name": "m", "title": "M", "source": source, "result": result, **more})


def test_a_report_survives_json() -> None:
    report = Report(
        model="m",
        source_digest="a",
        artifact_digest="b",
        scheme="FP8",
        recipe={"version": 1},
        measurements=(row(1, 2),),
    )
    assert Report.model_validate_json(report.to_json()) == report
    assert json.loads(report.to_json())["measurements"][0]["source"] == 1


def test_a_number_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError):
        row(float("nan"), 1)
    with pytest.raises(ValidationError):
        row(1, float("inf"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-0.0, "0"),
        (1, "1"),
        (12.3456, "12.35"),
        (0.0123456, "0.01235"),
        (-3.14159, "-3.142"),
        (4999999, "4,999,999"),
        (5e-324, "4.941e-324"),
        (1.7e308, "1.700e+308"),
        (0.00009, "9.000e-05"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_960, "1 MB"), (10_670_000, "10.67 MB"), (8.03e9, "8.03 GB")],
)
def test_bytes(value: float, text: str) -> None:
    assert format_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 s"), (0.5, "0.5 s"), (89.94, "89.94 s"), (90, "1 min 30 s"), (5400, "1 h 30 min"), (4e6, "1,111 h 06 min")],
)
def test_seconds(value: float, text: str) -> None:
    assert format_seconds(value) == text


def test_units() -> None:
    assert format_value(None, "bytes") == NOTHING
    assert format_value(0.98765, "share") == "98.77%"
    assert format_value(31.5, "tokens/s") == "31.5 tokens/s"
    assert format_value(2) == "2"


@pytest.mark.parametrize(
    ("measurement", "text", "judged"),
    [
        (row(100, 25, better="lower"), "-75.0%", "better"),
        (row(100, 101, better="lower"), "+1.0%", "worse"),
        (row(100, 100, better="lower"), "0.0%", "same"),
        (row(1, 40, better="higher"), "x40", "better"),
        (row(0, 0.1, better="lower"), "", "worse"),
        (row(None, 0.1, better="lower"), "", None),
        (row(0.1, None, better="lower"), "", None),
        (row(2, 3), "+50.0%", None),
        (row(None, 0.06, baseline=0.12, better="lower"), "-50.0% vs max", "better"),
        (row(1.0, 0.971, unit="share", better="higher"), "-2.9 points", "worse"),
        (row(5e-324, 1.7e308, better="lower"), "x1.798e+308", "worse"),
    ],
)
def test_changes(measurement: Measurement, text: str, judged: str | None) -> None:
    assert format_change(measurement) == text
    assert verdict(measurement) == judged


def test_reports_need_no_torch() -> None:
    modules = "optcore.report, optcore.report.text, optcore.report.card, optcore.report.page"
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
