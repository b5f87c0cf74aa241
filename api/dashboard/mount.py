"""Where the dashboard hangs on the application."""

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from api.dashboard import (
    compare_page,
    credential_settings,
    endpoint_messages,
    endpoint_settings,
    job_list,
    job_logs,
    job_page,
    job_verbs,
    key_settings,
    new_job,
    project_settings,
    sign_in,
    theme,
    webhook_settings,
    workers_page,
)

ROOMS = (
    *(sign_in, theme, job_list, job_page, job_logs, job_verbs, new_job, compare_page, workers_page),
    *(project_settings, key_settings, credential_settings, webhook_settings, endpoint_settings, endpoint_messages),
)


class _Assets(StaticFiles):
    """Scripts and styles: kept by the browser, asked for again so that an update shows."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        answer = await super().get_response(path, scope)
        answer.headers["Cache-Control"] = "no-cache"
        return answer


def mount(app: FastAPI) -> None:
    """Add the pages and what they load."""
    for room in ROOMS:
        app.include_router(room.router)
    app.mount("/static", _Assets(directory=Path(__file__).with_name("static")))
