"""The machines that jobs run on."""

from fastapi import APIRouter

from api import wire
from api.deps import JobReader, SessionDep
from api.store import workers
from lathe.models import Page, WorkerInfo

router = APIRouter(prefix="/v1/workers", tags=["workers"])

MAX_WORKERS = 1000


@router.get("")
def list_workers(session: SessionDep, caller: JobReader) -> Page[WorkerInfo]:
    """Worker processes of the last day, those that are there first: what they have, and why one takes no job."""
    found = workers.seen(session, MAX_WORKERS + 1)
    shown = [wire.worker(each, caller.project_id) for each in found[:MAX_WORKERS]]
    return wire.page(shown, [each.id for each in shown], has_more=len(found) > MAX_WORKERS)
