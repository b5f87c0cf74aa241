"""The result as one folder: checkpoint, report, card, pinned recipe, and a manifest that hashes all of it."""

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
from optcore.estimate.document import Estimate
from optcore.hardware import hardware
from optcore.links import link
from optcore.manifest import (
    ALSO,
    DOCUMENTS,
    Artifact,
    ArtifactFile,
    Parent,
    TrainedOn,
    checkpoint_digest,
    described,
    list_files,
)
from optcore.mixes import title_of
from optcore.paths import public
from optcore.plan import Result
from optcore.quantization import load_quantization
from optcore.recipe import Recipe
from optcore.report import (
    Coverage,
    DraftFacts,
    EngineNotes,
    EngineRun,
    Front,
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
from optcore.sizes import shapes, size_measurements, tensor_sizes
from optcore.source_card import read_source_card
from optcore.stage import Inputs
from optcore.steps import all_steps
from optcore.targets import family_of
from optcore.techniques import Technique
from optcore.version import installed

_COMPUTING = ("torch", "transformers", "tokenizers", "safetensors", "compressed-tensors", "numpy", "lathe")


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
    lineage: tuple[Parent, ...] = ()
    foreseen: Estimate | None = None
    front: Front | None = None
    """Of the race that it won."""


def assemble(outcomes: Sequence[Outcome], out: Path) -> Artifact:
    """Put the artifact together beside `out` and rename it into place. The first outcome is the main one."""
    part = out.with_name(f"{out.name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    for outcome in reversed(outcomes):  # the main one's manifest covers the others
        folder = part / ALSO / outcome.result.name if outcome.result.name else part
        artifact = _assemble_one(outcome, folder, outcomes)
    part.rename(out)
    return artifact


def _assemble_one(outcome: Outcome, folder: Path, outcomes: Sequence[Outcome]) -> Artifact:
    _link_files(Path(outcome.inputs.exported), folder)
    if outcome.inputs.draft:
        _link_files(Path(outcome.inputs.draft), folder / DRAFT)
        _note_made(outcome.evaluated.get("made"), folder / DRAFT)
    files = [file for file in list_files(folder) if file.path not in DOCUMENTS]
    digest = checkpoint_digest(files)
    published = public(outcome.recipe)
    files += _write_documents(folder, _with_engines(_report(outcome, digest), outcomes), published)
    artifact = Artifact(
        digest=digest,
        recipe_digest=outcome.recipe.digest,
        published_recipe_digest=published.digest,
        source_digest=outcome.inputs.source_digest,
        source_revision=outcome.recipe.model.revision if outcome.recipe.model.id else "",
        data_digest=outcome.inputs.data_digest,
        labelled_digest=outcome.inputs.labelled_digest,
        trained_on=outcome.trained_on,
        lineage=outcome.lineage,
        seed=outcome.recipe.seed,
        environment=_environment(outcome),
        files=tuple(sorted(files, key=lambda file: Path(file.path))),
    )
    artifact.save(folder)
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


def _write_documents(folder: Path, report: Report, recipe: Recipe) -> list[ArtifactFile]:
    texts = (report.to_json(), render_page(report), render_card(report), recipe.to_yaml())
    for name, text in zip(DOCUMENTS, texts, strict=True):
        (folder / name).write_text(text, encoding="utf-8")
    return [described(folder, folder / name) for name in DOCUMENTS]


def _report(outcome: Outcome, digest: str) -> Report:
    recipe, inputs, foreseen = outcome.recipe, outcome.inputs, outcome.foreseen
    source = Path(inputs.source)
    measured = tuple(Measurement.model_validate(row) for row in outcome.evaluated["measurements"])
    errors = outcome.evaluated.get("layer_errors", ())
    return Report(
        model=str(recipe.model) if recipe.model.id else source.name,
        base_model=recipe.model.id or "",
        **read_source_card(source).model_dump(),
        source_digest=inputs.source_digest,
        lineage=outcome.lineage,
        data_digest=inputs.data_digest,
        recipe_digest=recipe.digest,
        artifact_digest=digest,
        scheme=_scheme_line(outcome),
        schemes=_schemes(outcome),
        task=inputs.task,
        target=outcome.result.export.format,
        result=outcome.result.name,
        recipe=public(recipe).model_dump(mode="json"),
        measurements=(*size_measurements(source, Path(inputs.exported), Path(inputs.checkpoint)), *measured),
        stages=outcome.costs,
        expected=foreseen.stages if foreseen else (),
        expected_bytes=foreseen.weight_bytes_of(outcome.result.name) if foreseen else None,
        trials=outcome.trials,
        steps=_steps(outcome),
        series=outcome.series,
        draft=_draft(outcome),
        coverage=_coverage(outcome),
        deployment=_deployment(outcome),
        layer_errors=tuple(LayerError(layer=name, relative_error=error) for name, error in errors),
        notices=outcome.notices,
        front=outcome.front,
        environment=_environment(outcome),
    )


def _with_engines(report: Report, outcomes: Sequence[Outcome]) -> Report:
    """The source, which was measured once, and the result in their engines; the main result's report has those of all,
    and says what is missing, so that one page compares them."""
    found = [
        (one.result.name, EngineRun.model_validate(row))
        for one in outcomes
        for row in one.evaluated.get("engine_runs", ())
    ]
    source = (row for _, row in found if row.is_source)
    results = (row.model_copy(update={"result": name}) for name, row in found if not row.is_source)
    runs = (*source, *(row for row in results if report.result in ("", row.result)))
    missing = [] if report.result else [why for one in outcomes for why in one.evaluated.get("not_in_engines", ())]
    return report.model_copy(update={"engine_runs": runs, "notices": tuple(dict.fromkeys((*report.notices, *missing)))})


def _steps(outcome: Outcome) -> tuple[Step, ...]:
    inputs = outcome.inputs
    source, exported, dense = (Path(folder) for folder in (inputs.source, inputs.exported, inputs.checkpoint))
    changes = [technique.summary for technique in outcome.applied if not technique.stands_beside]
    last = changes[-1] if changes else ""
    rows = outcome.evaluated["measurements"]
    return all_steps(outcome.steps, source, exported, dense, last, rows)


def _scheme_line(outcome: Outcome) -> str:
    named = outcome.result.scheme
    said = [technique.summary for technique in outcome.applied]
    return "; ".join([*said[:-1], title_of(named)] if named else said)


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


def _environment(outcome: Outcome) -> dict[str, str]:
    packages = (*_COMPUTING, *outcome.result.export.packages_for(outcome.inputs.task))
    return {"hardware": hardware(), "python": platform.python_version(), **{name: installed(name) for name in packages}}
