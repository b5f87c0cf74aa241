"""The result as one folder: checkpoint, report, card, pinned recipe, and a manifest that hashes all of it."""

import hashlib
import os
import platform
import shutil
from pathlib import Path

from optcore.frozen import Frozen, digest_of
from optcore.links import link
from optcore.recipe import Recipe
from optcore.report import LayerError, Measurement, Report, StageCost
from optcore.report.card import render_card
from optcore.report.page import render_page
from optcore.sizes import size_measurements
from optcore.stage import Inputs, StageRecord
from optcore.version import ENGINE_VERSION, installed

MANIFEST = "manifest.json"


class ArtifactFile(Frozen):
    """One file of the artifact."""

    path: str
    bytes: int
    sha256: str


class Artifact(Frozen):
    """The manifest."""

    version: int = 1
    digest: str
    """SHA-256 over the checkpoint's files: the same for the same recipe, whatever was interrupted or measured."""
    recipe_digest: str
    source_digest: str
    engine: str = ENGINE_VERSION
    files: tuple[ArtifactFile, ...]
    """Every file but the manifest itself."""


def assemble(
    recipe: Recipe,
    inputs: Inputs,
    records: dict[str, StageRecord],
    costs: list[StageCost],
    notices: list[str],
    out: Path,
) -> Artifact:
    """Put the artifact together beside `out` and rename it into place."""
    part = out.with_name(f"{out.name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for path in sorted(Path(inputs.exported).iterdir()):
        link(path, part / path.name)
    checkpoint = _hashed(part)
    digest = digest_of([(file.path, file.sha256) for file in checkpoint])
    _write_documents(part, _report(recipe, inputs, records, costs, notices, digest))
    artifact = Artifact(
        digest=digest,
        recipe_digest=recipe.digest,
        source_digest=inputs.source_digest,
        files=_hashed(part),
    )
    (part / MANIFEST).write_text(artifact.model_dump_json(indent=2) + "\n")
    part.rename(out)
    return artifact


def _hashed(folder: Path) -> tuple[ArtifactFile, ...]:
    files = []
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        files.append(ArtifactFile(path=path.name, bytes=path.stat().st_size, sha256=sha256))
    return tuple(files)


def _write_documents(folder: Path, report: Report) -> None:
    recipe = Recipe.model_validate(report.recipe)
    documents = {
        "report.json": report.to_json(),
        "report.html": render_page(report),
        "README.md": render_card(report),
        "recipe.yaml": recipe.to_yaml(),
    }
    for name, text in documents.items():
        (folder / name).write_text(text, encoding="utf-8")


def _report(
    recipe: Recipe,
    inputs: Inputs,
    records: dict[str, StageRecord],
    costs: list[StageCost],
    notices: list[str],
    digest: str,
) -> Report:
    evaluated = list(records.values())[-1].results
    measured = tuple(Measurement.model_validate(row) for row in evaluated["measurements"])
    errors = tuple(LayerError(layer=name, relative_error=error) for name, error in evaluated.get("layer_errors", ()))
    return Report(
        model=str(recipe.model) if recipe.model.id else Path(inputs.source).name,
        base_model=recipe.model.id or "",
        source_digest=inputs.source_digest,
        artifact_digest=digest,
        scheme=_summary(records),
        target=recipe.target.format,
        recipe=recipe.model_dump(mode="json"),
        measurements=(*size_measurements(Path(inputs.source), Path(inputs.exported)), *measured),
        stages=tuple(costs),
        layer_errors=errors,
        notices=tuple(notices),
        environment=_environment(),
    )


def _summary(records: dict[str, StageRecord]) -> str:
    return "; ".join(record.results["summary"] for record in records.values() if "summary" in record.results)


def _environment() -> dict[str, str]:
    packages = ("torch", "transformers", "compressed-tensors", "lathe")
    hardware = f"{platform.machine()}, {os.cpu_count()} CPU cores"
    return {"hardware": hardware, "python": platform.python_version(), **{name: installed(name) for name in packages}}
