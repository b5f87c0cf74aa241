"""Whether the service lives, and whether it can take work; and what each problem code means."""

from fastapi import APIRouter, Response
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from api.deps import SessionsDep
from api.errors import NotFound, ServiceError
from api.store.session import Sessions
from lathe.models import Health
from optcore.errors import OptError

router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    """This process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": Health, "description": "The database does not answer"}})
def readyz(sessions: SessionsDep, response: Response) -> Health:
    """The service can take work: the database answers. A broker that is away delays work and loses none."""
    database = _answers(sessions)
    response.status_code = 200 if database else 503
    return Health(status="ok" if database else "degraded", database=database)


@router.get("/problems/{code}")
def get_problem(code: str) -> dict[str, str]:
    """What a problem's `type` leads to."""
    for kind in (*_tree(ServiceError), *_tree(OptError)):
        if kind.code == code:
            return {"code": code, "meaning": (kind.__doc__ or "").strip()}
    raise NotFound("no such problem", remedy="the detail of the problem itself says what went wrong")


def _answers(sessions: Sessions) -> bool:
    try:
        with sessions() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return False
    return True


def _tree(base: type[ServiceError] | type[OptError]) -> list[type[ServiceError] | type[OptError]]:
    return [base, *(kind for child in base.__subclasses__() for kind in _tree(child))]
