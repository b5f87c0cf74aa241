"""What a job would take, asked before it is submitted."""

from fastapi import APIRouter, Request

from api.body import json_body
from api.deps import JobWriter
from api.openapi import takes
from api.state import state_of
from lathe.estimate_models import Estimate
from optcore.recipe import Recipe

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.post("/estimate", openapi_extra=takes(Recipe))
async def estimate_job(request: Request, caller: JobWriter) -> Estimate:
    """Memory, disk, time, money and size that a recipe would take, by stage, and where it fits. Nothing is queued.

    A recipe that would be refused is answered too, with its problems.
    """
    return await state_of(request).estimator.estimate(caller.project_id, await json_body(request))
