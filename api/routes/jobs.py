"""Jobs: submit, list, look at; and the recipe that a job runs."""

from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from api import admission, lifecycle, wire
from api.audit import trail_of
from api.body import json_text, parsed
from api.deps import AfterDep, BeforeDep, JobReader, LimitDep, SessionDep, bearer, idempotency_key_of
from api.errors import BadRequest
from api.estimates.prices import cost_of_job
from api.openapi import keyed, takes
from api.replay import Answer
from api.settings import Settings
from api.state import state_of
from api.store import artifacts, attempts, jobs, listing, stages
from lathe.models import Job, JobStatus, Page
from optcore.recipe import Recipe, recipe_from

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

Expand = Literal["attempts", "artifacts"]
MAX_EXPANDED_files = 1000
QUICK_bytes = 8 * 1024
"""A recipe that is larger, or names files, is checked in a thread: that may take a while."""
_Text = Query(max_length=500, pattern=r"^[^\x00]*$")


class Unaided(APIRoute):
    """A route whose endpoint takes the request itself: without the framework's search for what else it may want."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Just the endpoint."""
        return cast("Callable[[Request], Coroutine[Any, Any, Response]]", self.endpoint)


async def create_job(request: Request) -> Response:
    """Submit a recipe. It is checked completely before the answer; the job is queued."""
    caller, key = await bearer.caller(request, ["jobs:write"]), idempotency_key_of(request)
    state, text = state_of(request), await json_text(request)
    is_quick = len(text) <= QUICK_bytes and b'"path"' not in text and b"\\" not in text  # which could hide it
    recipe = _read(state.settings, text) if is_quick else await run_in_threadpool(_read, state.settings, text)
    job = await admission.submit(state.statements, state.sessions, caller, trail_of(request), recipe, key)
    answer = Answer(location=f"/v1/jobs/{job.id}", body=wire.queued(job.id, job.document, job.created_at))
    return answer.response(replayed=job.inserted is None)


router.add_api_route(
    "",
    create_job,
    methods=["POST"],
    status_code=201,
    response_model=Job,
    openapi_extra={**takes(Recipe), **keyed("jobs:write")},
    route_class_override=Unaided,
)


def _read(settings: Settings, text: bytes) -> Recipe:
    return admission.admit(settings, recipe_from(parsed(text)))


async def job_query(
    status: Annotated[list[JobStatus] | None, Query(max_length=8, description="Only jobs in one of these.")] = None,
    technique: Annotated[str | None, _Text] = None,
    model: Annotated[str | None, Query(max_length=4096, pattern=r"^[^\x00]*$", description="Id or path.")] = None,
    name_contains: Annotated[str | None, _Text] = None,
    metadata: Annotated[list[str] | None, Query(max_length=32, description="`key=value`; all must match.")] = None,
    created_after: datetime | None = None,
    created_before: datetime | None = None,
    order: Annotated[Literal["asc", "desc"], Query(description="By time of creation.")] = "desc",
) -> listing.Query:
    """Which jobs to list."""
    return listing.Query(
        statuses=status or (),
        technique=technique,
        model=model,
        name_contains=name_contains,
        metadata=_pairs(metadata or ()),
        created_after=created_after,
        created_before=created_before,
        oldest_first=order == "asc",
    )


@router.get("")
def list_jobs(
    session: SessionDep,
    caller: JobReader,
    query: Annotated[listing.Query, Depends(job_query)],
    limit: LimitDep = 20,
    after: AfterDep = None,
    before: BeforeDep = None,
) -> Page[Job]:
    """Your jobs, newest first unless `order` says otherwise."""
    rows, has_more = listing.page(session, caller.project_id, limit=limit, query=query, after=after, before=before)
    ids = [row.id for row in rows]
    steps, waiting = stages.by_job(session, ids), lifecycle.waiting_reasons(session, rows)
    found = [wire.job(row, steps[row.id], waiting=waiting.get(row.id)) for row in rows]
    return wire.page(found, ids, has_more=has_more)


@router.get("/{job_id}")
def get_job(
    request: Request,
    session: SessionDep,
    caller: JobReader,
    job_id: str,
    expand: Annotated[list[Expand] | None, Query(max_length=2, description="What to answer besides.")] = None,
) -> Job:
    """One job with its stages; its attempts and files too when they are asked for."""
    row, wanted = jobs.get(session, caller.project_id, job_id), expand or ()
    return wire.job(
        row,
        stages.of(session, [row.id]),
        waiting=lifecycle.waiting_reasons(session, [row]).get(row.id),
        cost=cost_of_job(session, row.id, state_of(request).settings),
        attempts=attempts.of(session, row.id) if "attempts" in wanted else None,
        artifacts=artifacts.page(session, row.id, limit=MAX_EXPANDED_files) if "artifacts" in wanted else None,
    )


@router.get(
    "/{job_id}/recipe",
    response_class=Response,
    responses={200: {"content": {"application/yaml": {"schema": {"type": "string"}}}}},
)
def get_job_recipe(session: SessionDep, caller: JobReader, job_id: str) -> Response:
    """The recipe as YAML; pinned to commits and digests once the worker knows them."""
    job = jobs.get(session, caller.project_id, job_id)
    return Response(recipe_from(job.resolved or job.recipe).to_yaml(), media_type="application/yaml")


def _pairs(items: Sequence[str]) -> dict[str, str]:
    found = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or "\0" in item:
            raise BadRequest("metadata is filtered by key=value", remedy="send metadata=team=nlp", field="metadata")
        found[key] = value
    return found
