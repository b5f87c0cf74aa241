"""Make a model small, bring it home and say what it cost: with the sync client."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import lathe

RECIPE: Mapping[str, object] = {"model": {"path": "tiny"}, "chain": [{"technique": "ptq", "scheme": "fp8"}]}


def shrink(client: lathe.Client, folder: Path) -> dict[str, float | None]:
    """The result of each measurement, by name."""
    job: lathe.Job = client.jobs.create(RECIPE)
    try:
        job = job.result(timeout=120)
    except lathe.JobFailed as error:
        raise RuntimeError(f"{error.failure.code} in {error.failure.stage}: {error.remedy}") from error
    paths: tuple[Path, ...] = job.download(folder, on_progress=_note)
    assert all(path.is_file() for path in paths)
    measurements: lathe.Measurements = job.measurements()
    return {row.name: row.result for row in measurements}


def foresee(client: lathe.Client) -> str:
    """Why it would not run, or how long it would take."""
    estimate: lathe.Estimate = client.with_options(timeout=10.0, max_retries=0).jobs.estimate(RECIPE)
    if not estimate.allowed_to_proceed:
        return "; ".join(f"{problem.pointer}: {problem.reason}" for problem in estimate.problems)
    return f"{estimate.seconds_low:.0f} to {estimate.seconds_high:.0f} s"


def stages(job: lathe.Job) -> Iterator[str]:
    """What each stage is doing."""
    for stage in job.stages:
        stage_line: lathe.Stage = stage
        yield f"{stage_line.name} {stage_line.status}"
    for event in job.events():
        yield event.type
    for chunk in job.logs():
        yield chunk.text


def best(client: lathe.Client, jobs: list[lathe.Job]) -> list[str]:
    """Those that no other beats."""
    comparison: lathe.Comparison = client.compare([job.id for job in jobs])
    return [job.id for job in comparison.jobs if job.on_front]


def refused(client: lathe.Client) -> tuple[str, str]:
    """Where a recipe is wrong, and what to do."""
    try:
        client.jobs.create({"model": {"path": "tiny"}, "chain": [{"technique": "ptq", "scheme": "fp7"}]})
    except lathe.RecipeRefused as error:
        return error.field, error.remedy
    except lathe.APIError as error:
        return str(error.status), error.request_id
    return "", ""


def _note(artifact: lathe.Artifact, received_bytes: int) -> None:
    assert received_bytes <= artifact.bytes
