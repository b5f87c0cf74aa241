"""Jobs: submit, list, look at, cancel; and the recipe that a job runs."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response

from api import admission, lifecycle, wire
from api.body import json_body
from api.deps import AfterDep, IdempotencyKeyDep, JobReader, JobWriter, LimitDep, SessionDep, SettingsDep
from api.openapi import takes
from api.replay import Answer, Once
from api.store import jobs, stages
from api.store.models import Job as Row
from lathe.models import Job, JobStatus, Page
from optcore.recipe import Recipe, recipe_from

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.post("", status_code=201, response_model=Job, openapi_extra=takes(Recipe))
def create_job(
    session: SessionDep,
    settings: SettingsDep,
    caller: JobWriter,
    document: Annotated[Any, Depends(json_body)],
    idempotency_key: IdempotencyKeyDep = None,
) -> Response:
    """Submit a recipe. It is checked completely before the answer; the job is queued."""
    recipe = recipe_from(document)
    once = Once(session, settings.vault, caller.project_id, "POST /v1/jobs", idempotency_key)

    def submit() -> Answer:
        admitted = admission.admit(session, settings, caller.project_id, recipe)
        row = lifecycle.submit(session, caller.project_id, admitted)
        return Answer.of(f"/v1/jobs/{row.id}", wire.job(row, ()))

    return once.answer(document, submit)


@router.get("")
def list_jobs(
    session: SessionDep,
    caller: JobReader,
    limit: LimitDep = 20,
    after: AfterDep = None,
    status: Annotated[list[JobStatus] | None, Query(max_length=6, description="Only jobs in one of these.")] = None,
) -> Page[Job]:
    """Your jobs, newest first."""
    rows, has_more = jobs.page(session, caller.project_id, limit=limit, after=after, statuses=status or ())
    ids = [row.id for row in rows]
    all_stages = stages.of(session, ids)
    return wire.page([wire.job(row, all_stages) for row in rows], ids, has_more=has_more)


@router.get("/{job_id}")
def get_job(session: SessionDep, caller: JobReader, job_id: str) -> Job:
    """One job with its stages."""
    return _whole(session, jobs.get(session, caller.project_id, job_id))


@router.post("/{job_id}/cancel")
def cancel_job(session: SessionDep, caller: JobWriter, job_id: str) -> Job:
    """Stop a job: a queued one at once, a running one within seconds. Asking again changes nothing."""
    return _whole(session, lifecycle.request_cancel(session, caller.project_id, job_id))


@router.get(
    "/{job_id}/recipe",
    response_class=Response,
    responses={200: {"content": {"application/yaml": {"schema": {"type": "string"}}}}},
)
def get_job_recipe(session: SessionDep, caller: JobReader, job_id: str) -> Response:
    """The recipe as YAML; pinned to commits and digests once the worker knows them."""
    job = jobs.get(session, caller.project_id, job_id)
    return Response(recipe_from(job.resolved or job.recipe).to_yaml(), media_type="application/yaml")


def _whole(session: SessionDep, row: Row) -> Job:
    return wire.job(row, stages.of(session, [row.id]))
