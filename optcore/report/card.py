"""The model card: the README of the checkpoint, in the form that the Hub reads."""

import re

import yaml

from optcore.manifest import SIGNATURE, Parent
from optcore.references import Place, Publish
from optcore.report.card_head import front_matter
from optcore.report.engines import engine_note, engine_rows
from optcore.report.expected import expected_rows
from optcore.report.front_rows import front_note, front_rows, goal_lines
from optcore.report.loading import DECODE, NOT_TRANSFORMERS, engine_commands, loading_commands
from optcore.report.model import EngineNotes, Measurement, Report
from optcore.report.numbers import (
    format_bound,
    format_bytes,
    format_change,
    format_peaks,
    format_seconds,
    format_trial,
    format_value,
)
from optcore.report.steps import step_rows

_PACKAGES = {"compressed-tensors": "compressed-tensors", "awq": "gptqmodel", "gptq": "gptqmodel"}
"""What transformers wants beside itself to read a target."""
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|!~&$])")

_CHECK = f"""Check a copy of this folder against its manifest, and a signature where `{SIGNATURE}` is there:

```shell
lathe verify path/to/this/folder
lathe verify path/to/this/folder --key signer.pub
```"""


def render_card(report: Report) -> str:
    """Markdown with YAML front matter. Every text that comes from a user or a model is escaped."""
    parts = [
        front_matter(report, _owner(report)),
        f"# {escape(_title(report))}",
        f"{escape(report.model)} as **{escape(report.scheme)}** in the `{code(report.target)}` format, "
        "made and measured by Lathe.",
        _measurements(report),
        _race(report),
        _steps(report),
        _engines(report),
        _coverage(report),
        _loading(report),
        _draft(report),
        _deployment(report),
        _trials(report),
        _stages(report),
        _provenance(report),
        "## Recipe\n\nThis recipe, with its commits and data pinned, makes the same checkpoint again.",
        fenced("yaml", yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Text as Markdown that shows exactly it: on one line, no markup, no HTML, no table breaks."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split())).replace(r"\<", "&lt;").replace(r"\&", "&amp;")


def code(text: str) -> str:
    """Text that can stand between single backticks, also in a table."""
    return " ".join(text.replace("`", "'").replace("|", "/").split()) or "?"


def fenced(language: str, text: str) -> str:
    """A code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 3)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _title(report: Report) -> str:
    place = _place(report)
    if place is None:
        return f"{report.model}, {report.scheme}"
    name = place.repo_id.rpartition("/")[2]
    return name if name.endswith(report.result) else f"{name}, {report.result}"


def _place(report: Report) -> Place | None:
    publish = report.recipe.get("publish")
    return Publish.model_validate(publish).place(report.result) if publish else None


def _owner(report: Report) -> str:
    place = _place(report)
    return place.repo_id.rpartition("/")[0] if place else ""


def _measurements(report: Report) -> str:
    if not report.measurements:
        return ""
    baseline = any(row.baseline is not None for row in report.measurements)
    header = ["", "Source", *(["Max scales"] if baseline else []), "Result", "Change"]
    lines = [_table_line(header), _table_line([":--", *["--:"] * (len(header) - 1)])]
    lines += [_table_line(_measurement_cells(row, baseline)) for row in report.measurements]
    explained = "\n\n*Max scales*: the same format without scale search." if baseline else ""
    notes = "".join(f"\n- {escape(row.title)}: {escape(row.note)}" for row in report.measurements if row.note)
    notices = "".join(f"\n- {escape(notice)}" for notice in report.notices)
    remarks = f"\n{notes}{notices}" if notes or notices else ""
    return "## Before and after\n\n" + "\n".join(lines) + explained + remarks


def _measurement_cells(row: Measurement, baseline: bool) -> list[str]:
    values = [row.source, *([row.baseline] if baseline else []), row.result]
    return [escape(row.title), *(escape(format_value(value, row.unit)) for value in values), escape(format_change(row))]


def _table_line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _race(report: Report) -> str:
    if report.front is None:
        return ""
    header, *rows = front_rows(report.front)
    lines = [_table_line([*map(escape, header)]), _table_line([":--", ":--", *["--:"] * (len(header) - 2)])]
    lines += [_table_line([*map(escape, row)]) for row in rows]
    met = "".join(f"- {escape(line)}\n" for line in goal_lines(report.front))
    return f"## The race\n\n{escape(front_note(report.front))}\n\n{met}\n" + "\n".join(lines)


def _steps(report: Report) -> str:
    if not report.steps:
        return ""
    header, *rows = step_rows(report)
    lines = [_table_line([*map(escape, header)]), _table_line([":--", *["--:"] * (len(header) - 1)])]
    return "## Step by step\n\n" + "\n".join([*lines, *(_table_line([*map(escape, row)]) for row in rows)])


def _engines(report: Report) -> str:
    if not report.engine_runs:
        return ""
    header, *rows = engine_rows(report.engine_runs)
    lines = [_table_line([*map(escape, header)]), _table_line([":--", *["--:"] * (len(header) - 1)])]
    lines += [_table_line([*map(escape, row)]) for row in rows]
    return f"## In the engines that serve it\n\n{escape(engine_note(report.engine_runs))}\n\n" + "\n".join(lines)


def _coverage(report: Report) -> str:
    found = report.coverage
    if found is None:
        return ""
    lines = [_table_line(["Tensors", "Format", "Source", "Result"]), _table_line([":--", ":--", "--:", "--:"])]
    for row in found.classes:
        cells = [
            f"`{code(row.name)}`",
            escape(row.formats),
            format_bytes(row.source_bytes),
            format_bytes(row.result_bytes),
        ]
        lines.append(_table_line(cells))
    fallbacks = "".join(f"\n- `{code(name)}`: {escape(reason)}" for name, reason in found.fallbacks.items())
    said = f"\n\nLayers that fell back to a weaker method:\n{fallbacks}" if fallbacks else ""
    share = format_value(found.quantized_share, "share")
    return f"## What was quantized\n\n{share} of the parameters.\n\n" + "\n".join(lines) + said


def _loading(report: Report) -> str:
    python, shell = loading_commands(_place(report), report.task)
    if report.target == "compact":
        return (
            f"## Use\n\nNo engine loads this folder. Decode it, with `lathe` installed:\n\n{fenced('python', DECODE)}"
        )
    if report.target in NOT_TRANSFORMERS:
        engine, language, commands = engine_commands(report.target, _place(report), report.task)
        return f"## Use\n\nIn {engine}:\n\n{fenced(language, commands)}"
    needed = _PACKAGES.get(report.target, "")
    package = f", with `{needed}` installed" if needed else ""
    hardware = "" if report.target == "dense" else ", on hardware that has kernels for this format"
    served = f"\n\nIn vLLM{hardware}:\n\n{fenced('shell', shell)}" if report.task == "text-generation" else ""
    return f"## Use\n\nIn transformers{package}:\n\n{fenced('python', python)}{served}"


def _draft(report: Report) -> str:
    found = report.draft
    if found is None:
        return ""
    size = f" It has {found.parameters} parameters in {format_bytes(found.weight_bytes)}." if found.parameters else ""
    return (
        f"## Draft\n\n`draft/` holds a speculative draft (`{code(found.method)}`) for this very model, measured with "
        f"{found.tokens} tokens a round. The model verifies what it guesses, so no answer changes.{size}"
    )


def _deployment(report: Report) -> str:
    if not report.deployment:
        return ""
    intro = "Settings of the engines that load this format. They belong to a deployment, and none of them was measured."
    return "\n\n".join(["## Deployment", intro, *map(_engine_notes, report.deployment)])


def _engine_notes(notes: EngineNotes) -> str:
    lines = [_table_line(["Setting", "Value", "Why"]), _table_line([":--", ":--", ":--"])]
    for setting in notes.settings:
        value = f"`{code(setting.value)}`" if setting.value else ""
        lines.append(_table_line([f"`{code(setting.name)}`", value, escape(setting.why)]))
    conditions = "".join(f" Condition: {escape(condition)}." for condition in notes.conditions)
    without = f" Without the draft: it {escape(notes.without_draft)}." if notes.without_draft else ""
    given = f"As {escape(notes.given)} (see {escape(notes.documentation)}).{conditions}{without}"
    hardware = "".join(f"\n- What makes it fast: {escape(said)}" for said in notes.hardware)
    typed = [fenced(_language(command), command) for command in notes.commands]
    parts = [f"### {escape(notes.engine)}", *(["Typed in this folder:", *typed] if typed else []), given]
    return "\n\n".join([*parts, "\n".join(lines), *([hardware.strip()] if hardware else [])])


def _language(command: str) -> str:
    return "python" if command.startswith(("import ", "from ")) else "shell"


def _trials(report: Report) -> str:
    if not report.trials:
        return ""
    header = ["Stage", "Tried", "Measured", "Asked for", "Passed", "Then"]
    lines = [_table_line(header), _table_line([":--"] * len(header))]
    for trial in report.trials:
        passed = "yes" if trial.passed else "no"
        cells = (trial.stage, trial.tried, format_trial(trial), format_bound(trial), passed, trial.then)
        lines.append(_table_line([escape(cell) for cell in cells]))
    return "## What was tried\n\n" + "\n".join(lines)


def _stages(report: Report) -> str:
    if not report.stages:
        return ""
    lines = [_table_line(["Stage", "Time", "Peak memory"]), _table_line([":--", "--:", "--:"])]
    for stage in report.stages:
        seconds = "cached" if stage.cached else format_seconds(stage.seconds)
        memory = format_peaks(stage.peak_memory_bytes, stage.peak_gpu_memory_bytes)
        lines.append(_table_line([escape(stage.name), seconds, memory]))
    return "## What it took\n\n" + "\n".join(lines) + _expected(report)


def _expected(report: Report) -> str:
    rows = expected_rows(report)
    if not rows:
        return ""
    lines = [_table_line(rows[0]), _table_line([":--", *["--:"] * (len(rows[0]) - 1)])]
    lines += [_table_line([escape(cell) for cell in row]) for row in rows[1:]]
    return "\n\nWhat was expected before the run, and what it took:\n\n" + "\n".join(lines)


def _provenance(report: Report) -> str:
    lines = [
        f"- Source: {escape(report.model)}, SHA-256 `{code(report.source_digest)}`",
        *(_parent(parent) for parent in report.lineage if parent.role != "source"),
        f"- Result: SHA-256 `{code(report.artifact_digest)}`; `manifest.json` lists every file",
        *([f"- Recipe: SHA-256 `{code(report.recipe_digest)}`"] if report.recipe_digest else []),
        *([f"- Calibration text: SHA-256 `{code(report.data_digest)}`"] if report.data_digest else []),
        *(f"- {escape(name)}: {escape(value)}" for name, value in report.environment.items()),
    ]
    return "## Provenance\n\n" + "\n".join(lines) + "\n\n" + _CHECK


def _parent(parent: Parent) -> str:
    name = f"{parent.name}@{parent.revision}" if parent.revision else parent.name
    return f"- {escape(parent.role.capitalize())}: {escape(name)}, SHA-256 `{code(parent.sha256)}`"
