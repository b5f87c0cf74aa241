"""What can be done to a job: cancel, pause, resume, retry, publish, delete."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from api import lifecycle, wire
from api.admission import known_credential
from api.audit import Trail, TrailDep
from api.auth import Caller
from api.body import json_body
from api.deps import IdempotencyKeyDep, JobWriter, SessionDep, SettingsDep
from api.errors import Invalid
from api.openapi import takes
from api.replay import Answer, Once
from api.settings import Settings
from api.store import stages
from api.store.models import Job as Row
from lathe.models import Job
from optcore.references import Publish

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@dataclass(frozen=True)
class Deed:
    """A change of a job that a caller asks for: done once, however often it is asked for, and written down."""

    session: Session
    settings: Settings
    caller: Caller
    trail: Trail
    key: str | None

    def do(self, verb: str, job_id: str, act: Callable[..., Row], *more: Any) -> Response:
        """Call `act(session, project, job, ...)` and answer with the job as it is then."""
        where = f"POST /v1/jobs/{job_id}/{verb}"
        once = Once(self.session, self.settings.vault, self.caller.project_id, where, self.key)

        def make() -> Answer:
            row = act(self.session, self.caller.project_id, job_id, *more)
            self.trail.note(self.session, self.caller, f"job.{verb}", job_id)
            waiting = lifecycle.waiting_reasons(self.session, [row]).get(row.id)
            return Answer.of(wire.job(row, stages.of(self.session, [row.id]), waiting=waiting))

        return once.answer(list(more), make)


async def deed(
    session: SessionDep,
    settings: SettingsDep,
    caller: JobWriter,
    trail: TrailDep,
    idempotency_key: IdempotencyKeyDep = None,
) -> Deed:
    """What every change of a job needs."""
    return Deed(session, settings, caller, trail, idempotency_key)


DeedDep = Annotated[Deed, Depends(deed)]


@router.post("/{job_id}/cancel", response_model=Job)
def cancel_job(deed: DeedDep, job_id: str) -> Response:
    """Stop a job: a waiting one at once, a running one within seconds. Asking again changes nothing."""
    return deed.do("cancel", job_id, lifecycle.request_cancel)


@router.post("/{job_id}/pause", response_model=Job)
def pause_job(deed: DeedDep, job_id: str) -> Response:
    """Set a job aside and free its worker; what is finished is kept. Asking again changes nothing."""
    return deed.do("pause", job_id, lifecycle.request_pause)


@router.post("/{job_id}/resume", response_model=Job)
def resume_job(deed: DeedDep, job_id: str) -> Response:
    """Queue a paused job again; it goes on behind its last finished layer. Asking again changes nothing."""
    return deed.do("resume", job_id, lifecycle.resume)


@router.post("/{job_id}/retry", response_model=Job)
def retry_job(deed: DeedDep, job_id: str) -> Response:
    """Begin a new run of a job that failed or was cancelled; finished stages are not run again."""
    return deed.do("retry", job_id, lifecycle.retry)


async def _place(request: Request) -> dict[str, Any] | None:
    """The body of a wish to publish, which may be absent."""
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return None
    try:
        return Publish.model_validate(await json_body(request)).model_dump(mode="json")
    except ValidationError as error:
        raise Invalid("the body says nowhere to publish", remedy='send {"repo_id": "you/model"}') from error


@router.post("/{job_id}/publish", response_model=Job, openapi_extra=takes(Publish, required=False))
def publish_job(deed: DeedDep, job_id: str, where: Annotated[dict[str, Any] | None, Depends(_place)]) -> Response:
    """Push a finished job to the Hub: once more after a failure, or to the place in the body (a recipe's `publish`)."""
    if where is not None:
        known_credential(deed.session, deed.caller.project_id, where["credential"], "/credential")
    return deed.do("publish", job_id, lifecycle.request_publish, where)


@router.delete("/{job_id}", status_code=204)
def delete_job(session: SessionDep, caller: JobWriter, trail: TrailDep, job_id: str) -> None:
    """Forget a job that is over: its history, its logs and its files."""
    lifecycle.delete(session, caller.project_id, job_id)
    trail.note(session, caller, "job.delete", job_id)
