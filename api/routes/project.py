"""The caller's project: its limits, what it uses of them, and what was done in it."""

from typing import Annotated

from fastapi import APIRouter, Query

from api import wire
from api.deps import AnyCaller, AuditReader, LimitDep, SessionDep
from api.store import audit, projects
from lathe.models import AuditEntry, Page, Project

router = APIRouter(prefix="/v1", tags=["project"])


@router.get("/project")
def get_project(session: SessionDep, caller: AnyCaller) -> Project:
    """Whom the key speaks for."""
    return wire.project(projects.get(session, caller.project_id), projects.usage(session, caller.project_id))


@router.get("/audit")
def list_audit_entries(
    session: SessionDep,
    caller: AuditReader,
    limit: LimitDep = 20,
    after: Annotated[int | None, Query(ge=1, lt=2**63, description="`last_id` of the page before.")] = None,
) -> Page[AuditEntry]:
    """Who did what in the project, newest first."""
    rows = audit.page(session, caller.project_id, limit=limit + 1, after=after)
    shown = [wire.audit_entry(row) for row in rows[:limit]]
    return wire.page(shown, [str(row.id) for row in rows[:limit]], has_more=len(rows) > limit)
