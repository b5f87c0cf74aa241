"""Where the dashboard hangs on the application."""

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from api.dashboard import job_list, job_page, new_job, sign_in, theme


class _Assets(StaticFiles):
    """Scripts and styles: kept by the browser, asked for again so that an update shows."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        answer.headers["Cache-Control"] = "no-cache"
        return answer


def mount(app: FastAPI) -> None:
    """Add the pages and what they load."""
    for room in (sign_in, theme, job_list, job_page, new_job):
        app.include_router(room.router)
    app.mount("/static", _Assets(directory=Path(__file__).with_name("static")))
