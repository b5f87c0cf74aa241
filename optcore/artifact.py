"""The result as one folder: checkpoint, report, card, pinned recipe, and a manifest that hashes all of it."""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from optcore.coverage import coverage
from optcore.deployment import deployment_notes, encoder_notes, formats_of
from optcore.draft_document import DRAFT, load_draft_document
from optcore.draft_made import MADE, Made
from optcore.draft_settings import ServedDraft
from optcore.frozen import Frozen, digest_of
from optcore.links import link
from optcore.paths import with_paths
from optcore.plan import Result
from optcore.quantization import load_quantization
from optcore.recipe import Recipe
from optcore.report import (
    Coverage,
    DraftFacts,
    EngineNotes,
    LayerError,
    Measurement,
    Report,
    Series,
    StageCost,
    Step,
    Trial,
)
from optcore.report.card import render_card
from optcore.report.page import render_page
from optcore.schemes import PRESETS
from optcore.sizes import shapes, size_measurements, tensor_sizes
from optcore.stage import Inputs
from optcore.steps import all_steps
from optcore.targets import family_of
from optcore.techniques import Technique
from optcore.version import ENGINE_VERSION, installed

MANIFEST = "manifest.json"
ALSO = "also"
"""Folder of the results beside the main one."""
_DOCUMENTS = ("report.json", "report.html", "README.md", "recipe.yaml")


class ArtifactFile(Frozen):
    """One file of the artifact."""

    path: str
    bytes: int
    sha256: str


class TrainedOn(Frozen):
    """The windows that one stage trained on."""

    stage: str
    kind: str
    """Where they came from: `text`, `chat`, `labelled`, `generated` or `random`."""
    sha256: str
    """Of all token ids and flags."""
    windows: int
    tokens: int
    """In them, each counted once however often it was trained on."""
    seed: int


class Artifact(Frozen):
    """The manifest."""

    version: int = 1
    digest: str
    """SHA-256 over the checkpoint's files: the same for the same recipe, whatever was interrupted or measured."""
    recipe_digest: str
    source_digest: str
    """SHA-256 over the source checkpoint's files."""
    data_digest: str
    """SHA-256 over the calibration text's files."""
    trained_on: tuple[TrainedOn, ...] = ()
    engine: str = ENGINE_VERSION
    files: tuple[ArtifactFile, ...]
    """Every file but the manifest itself."""


class Outcome(NamedTuple):
    """What a finished run knows of one of its results."""

    result: Result
    recipe: Recipe
    inputs: Inputs
    applied: tuple[Technique, ...]
    evaluated: dict[str, Any]
    costs: tuple[StageCost, ...]
    notices: tuple[str, ...]
    trials: tuple[Trial, ...]
    steps: tuple[Step, ...] = ()
    series: tuple[Series, ...] = ()
    trained_on: tuple[TrainedOn, ...] = ()


def assemble(outcomes: Sequence[Outcome], out: Path) -> Artifact:
    """Put the artifact together beside `out` and rename it into place. The first outcome is the main one."""
    part = out.with_name(f"{out.name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    for outcome in reversed(outcomes):  # the main one's manifest covers the others
        artifact = _assemble_one(outcome, part / ALSO / outcome.result.name if outcome.result.name else part)
    part.rename(out)
    return artifact


def _assemble_one(outcome: Outcome, folder: Path) -> Artifact:
    _link_files(Path(outcome.inputs.exported), folder)
    if outcome.inputs.draft:
        _link_files(Path(outcome.inputs.draft), folder / DRAFT)
        _note_made(outcome.evaluated.get("made"), folder / DRAFT)
    exported = [file for file in _hashed(folder) if Path(file.path).name not in (MANIFEST, *_DOCUMENTS)]
    digest = digest_of([(file.path, file.sha256) for file in exported])
    _write_documents(folder, _report(outcome, digest))
    artifact = Artifact(
        digest=digest,
        recipe_digest=outcome.recipe.digest,
        source_digest=outcome.inputs.source_digest,
        data_digest=outcome.inputs.data_digest,
        trained_on=outcome.trained_on,
        files=_hashed(folder),
    )
    (folder / MANIFEST).write_text(artifact.model_dump_json(indent=2) + "\n")
    return artifact


def _link_files(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        link(path, folder / path.name)


def _note_made(found: dict[str, Any] | None, draft: Path) -> None:
    """Leave beside a draft how it does on the model that it ships with; what it did on another one goes."""
    (draft / MADE).unlink(missing_ok=True)
    if found:
        Made.model_validate(found).save(draft)


def _hashed(folder: Path) -> tuple[ArtifactFile, ...]:
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        files.append(ArtifactFile(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=sha256))
    return tuple(files)


def _write_documents(folder: Path, report: Report) -> None:
    recipe = Recipe.model_validate(report.recipe)
    texts = (report.to_json(), render_page(report), render_card(report), recipe.to_yaml())
    for name, text in zip(_DOCUMENTS, texts, strict=True):
        (folder / name).write_text(text, encoding="utf-8")


def _report(outcome: Outcome, digest: str) -> Report:
    recipe, inputs = outcome.recipe, outcome.inputs
    source = Path(inputs.source)
    measured = tuple(Measurement.model_validate(row) for row in outcome.evaluated["measurements"])
    errors = outcome.evaluated.get("layer_errors", ())
    return Report(
        model=str(recipe.model) if recipe.model.id else source.name,
        base_model=recipe.model.id or "",
        source_digest=outcome.inputs.source_digest,
        artifact_digest=digest,
        scheme=_scheme_line(outcome),
        schemes=_schemes(outcome),
        task=inputs.task,
        target=outcome.result.export.format,
        result=outcome.result.name,
        recipe=_public(recipe).model_dump(mode="json"),
        measurements=(*size_measurements(source, Path(inputs.exported), Path(inputs.checkpoint)), *measured),
        stages=outcome.costs,
        trials=outcome.trials,
        steps=_steps(outcome),
        series=outcome.series,
        draft=_draft(outcome),
        coverage=_coverage(outcome),
        deployment=_deployment(outcome),
        layer_errors=tuple(LayerError(layer=name, relative_error=error) for name, error in errors),
        notices=outcome.notices,
        environment=_environment(),
    )


def _steps(outcome: Outcome) -> tuple[Step, ...]:
    inputs = outcome.inputs
    source, exported, dense = (Path(folder) for folder in (inputs.source, inputs.exported, inputs.checkpoint))
    changes = [technique.summary for technique in outcome.applied if not technique.stands_beside]
    last = changes[-1] if changes else ""
    rows = outcome.evaluated["measurements"]
    return all_steps(outcome.steps, source, exported, dense, last, rows)


def _scheme_line(outcome: Outcome) -> str:
    named = PRESETS.get(outcome.result.scheme)
    said = [technique.summary for technique in outcome.applied]
    return "; ".join([*said[:-1], named.title] if named else said)


def _coverage(outcome: Outcome) -> Coverage | None:
    checkpoint = Path(outcome.inputs.checkpoint)
    description = load_quantization(checkpoint)
    return coverage(description, checkpoint, Path(outcome.inputs.exported)) if description else None


def _draft(outcome: Outcome) -> DraftFacts | None:
    folder = Path(outcome.inputs.draft)
    found = load_draft_document(folder) if outcome.inputs.draft else None
    if found is None:
        return None
    weights = sorted(folder.glob("*.safetensors"))
    return DraftFacts(
        method=found.method,
        tokens=found.tokens,
        parameters=sum(elements for path in weights for elements, _ in tensor_sizes(path).values()),
        weight_bytes=sum(path.stat().st_size for path in weights),
    )


def _served(outcome: Outcome) -> ServedDraft | None:
    found = load_draft_document(Path(outcome.inputs.draft)) if outcome.inputs.draft else None
    if found is None:
        return None
    return ServedDraft(found.method, found.layout, found.tokens, found.taps, found.has_mask_token)


def _schemes(outcome: Outcome) -> tuple[str, ...]:
    description = load_quantization(Path(outcome.inputs.checkpoint))
    return tuple(scheme.name for scheme in description.schemes) if description else ()


def _deployment(outcome: Outcome) -> tuple[EngineNotes, ...]:
    inputs = outcome.inputs
    target, formats = outcome.result.export.format, formats_of(load_quantization(Path(inputs.checkpoint)))
    if inputs.task != "text-generation":
        return encoder_notes(target, formats, inputs.task)
    config = json.loads((Path(inputs.exported) / "config.json").read_text())
    family = family_of(config, shapes(Path(inputs.source)))
    return deployment_notes(target, formats, config, family, _served(outcome))


def _public(recipe: Recipe) -> Recipe:
    """The recipe as it may be published: folders of this machine by their names alone, no bookkeeping of the user's."""
    return with_paths(recipe, lambda path, _: Path(path).name).model_copy(update={"metadata": {}})


def _environment() -> dict[str, str]:
    packages = ("torch", "transformers", "compressed-tensors", "lathe")
    hardware = f"{platform.machine()}, {os.cpu_count()} CPU cores"
    return {"hardware": hardware, "python": platform.python_version(), **{name: installed(name) for name in packages}}
