"""The before/after table for a terminal."""

from optcore.report.engines import engine_rows
from optcore.report.expected import expected_rows
from optcore.report.front import Front
from optcore.report.front_rows import front_note, front_rows, goal_lines
from optcore.report.model import Measurement, Report, Trial
from optcore.report.numbers import (
    format_bound,
    format_change,
    format_peaks,
    format_seconds,
    format_trial,
    format_value,
    verdict,
)
from optcore.report.steps import step_rows


def render_table(report: Report) -> str:
    """Plain text, aligned, one row a measurement, with a word for whether its change is a good one.

    Names come from users, so control characters (which can steer a terminal) are taken out.
    """
    with_baseline = any(row.baseline is not None for row in report.measurements)
    header = ["", "source", *(["max scales"] if with_baseline else []), "result", "change", ""]
    rows = [_row(row, with_baseline) for row in report.measurements]
    lines = [printable(f"{report.model}  ->  {report.scheme}"), "", *_aligned([header, *rows])]
    lines += ["", *_race_lines(report.front)] if report.front else []
    lines += ["", *_aligned([[*map(printable, row), ""] for row in step_rows(report)])] if report.steps else []
    lines += (
        ["", *_aligned([[*map(printable, row), ""] for row in engine_rows(report.engine_runs)])]
        if report.engine_runs
        else []
    )
    lines += ["", *_stage_lines(report)] if report.stages else []
    lines += ["", *_aligned([[*map(printable, row), ""] for row in rows])] if (rows := expected_rows(report)) else []
    lines += [*map(printable, map(_trial_line, report.trials)), ""] if report.trials else []
    lines += [f"note: {printable(notice)}" for notice in report.notices]
    lines += ["", *_commands(report)] if report.deployment else []
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _commands(report: Report) -> list[str]:
    """What takes one line of a shell; files to write first and Python are on the page."""
    lines = ["typed in the result's folder:"]
    for notes in report.deployment:
        one_line = [command.replace(" \\\n  ", " ") for command in notes.commands]
        lines += [printable(f"  {notes.engine}: {command}") for command in one_line if "\n" not in command]
    return lines


def _race_lines(front: Front) -> list[str]:
    table = _aligned([[*map(printable, row), ""] for row in front_rows(front)])
    return [*table, "", front_note(front), *(f"goal: {line}" for line in goal_lines(front))]


def printable(text: str) -> str:
    """One line without control characters."""
    return "".join(character if character.isprintable() else " " for character in text)


def _row(row: Measurement, with_baseline: bool) -> list[str]:
    baseline = [format_value(row.baseline, row.unit)] if with_baseline else []
    cells = [
        row.title,
        format_value(row.source, row.unit),
        *baseline,
        format_value(row.result, row.unit),
        format_change(row),
        verdict(row) or "",
    ]
    return [printable(cell) for cell in cells]


def _stage_lines(report: Report) -> list[str]:
    rows = [["stage", "time", "peak memory", ""]]
    for stage in report.stages:
        cached = "cached" if stage.cached else ""
        cells = [format_seconds(stage.seconds), format_peaks(stage.peak_memory_bytes, stage.peak_gpu_memory_bytes)]
        rows.append([printable(stage.name), *cells, cached])
    return _aligned(rows)


def _trial_line(trial: Trial) -> str:
    passed = "passed" if trial.passed else "missed"
    return f"gate: {trial.stage} ({trial.tried}): {format_trial(trial)}, {format_bound(trial)}: {passed}, {trial.then}"


def _aligned(rows: list[list[str]]) -> list[str]:
    """The first and the last column to the left, numbers between them to the right, a rule below the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    lines = [
        "  ".join(
            cell.ljust(width) if index in (0, last) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]
