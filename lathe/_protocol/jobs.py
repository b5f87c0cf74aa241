"""What is asked about jobs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from lathe._protocol.call import Call, Params, idempotency, nothing, reader, segment
from lathe._stream import Cursor, L
from lathe.comparison_models import Comparison
from lathe.estimate_models import Estimate
from lathe.models import Job, JobEvent, LogChunk, MetricCurve, Page
from lathe.report import Report
from optcore.recipe import Recipe

Verb = Literal["cancel", "pause", "resume", "retry", "publish"]
AnyRecipe = Recipe | Mapping[str, Any]
EVENT_STREAM = "text/event-stream"

_job = reader(Job)
_jobs = reader(Page[Job])
_curves = reader(Page[MetricCurve])
_json_object = reader(dict[str, Any])
_estimate = reader(Estimate)
_comparison = reader(Comparison)

_LINES: Mapping[type, tuple[str, Callable[[bytes], Page[Any]]]] = {
    JobEvent: ("events", reader(Page[JobEvent])),
    LogChunk: ("logs", reader(Page[LogChunk])),
}


def create_job(recipe: AnyRecipe, idempotency_key: str | None) -> Call[Job]:
    return Call("POST", "/v1/jobs", _job, body=_document_of(recipe), headers=idempotency(idempotency_key))


def estimate_job(recipe: AnyRecipe) -> Call[Estimate]:
    return Call("POST", "/v1/jobs/estimate", _estimate, body=_document_of(recipe))


def _document_of(recipe: AnyRecipe) -> dict[str, Any]:
    """A mapping goes as it is: the service, which may be newer, is the one that judges it."""
    if not isinstance(recipe, (Recipe, Mapping)):
        raise TypeError(f"a recipe is a Recipe or a mapping, got {type(recipe).__name__}; for a file, create_from_file")
    return recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else dict(recipe)


def get_job(job_id: str, params: Params | None = None) -> Call[Job]:
    return Call("GET", f"/v1/jobs/{segment(job_id)}", _job, params or {})


def compare_jobs(job_ids: Sequence[str]) -> Call[Comparison]:
    return Call("GET", "/v1/comparisons", _comparison, {"job": list(job_ids)})


def list_jobs(params: Params) -> Call[Page[Job]]:
    return Call("GET", "/v1/jobs", _jobs, params)


def change_job(job_id: str, verb: Verb, body: Mapping[str, Any] | None = None) -> Call[Job]:
    document = None if body is None else dict(body)
    return Call("POST", f"/v1/jobs/{segment(job_id)}/{verb}", _job, body=document, headers=idempotency())


def delete_job(job_id: str) -> Call[None]:
    return Call("DELETE", f"/v1/jobs/{segment(job_id)}", nothing)


def list_lines(job_id: str, cursor: Cursor[L]) -> Call[Page[L]]:
    """A page of the events or the log, from where the cursor is."""
    name, parse = _LINES[cursor.line]
    params, headers = {"after": cursor.seq or None}, {"Accept": "application/json"}
    return Call("GET", f"/v1/jobs/{segment(job_id)}/{name}", parse, params, headers=headers)


def stream_lines(job_id: str, cursor: Cursor[L]) -> Call[None]:
    """The same as a stream, which is read line by line and not from `parse`."""
    headers = {"Accept": EVENT_STREAM, "Cache-Control": "no-store"}
    if cursor.seq:
        headers["Last-Event-ID"] = str(cursor.seq)
    return Call("GET", f"/v1/jobs/{segment(job_id)}/{_LINES[cursor.line][0]}", nothing, headers=headers)


def get_metrics(job_id: str, params: Params) -> Call[Page[MetricCurve]]:
    return Call("GET", f"/v1/jobs/{segment(job_id)}/metrics", _curves, params)


def get_report(job_id: str) -> Call[Report]:
    return Call("GET", f"/v1/jobs/{segment(job_id)}/report", _report)


def get_recipe(job_id: str) -> Call[str]:
    return Call("GET", f"/v1/jobs/{segment(job_id)}/recipe", bytes.decode)


def _report(content: bytes) -> Report:
    return Report(_json_object(content))
