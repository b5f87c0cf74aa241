"""The web service: `uvicorn --factory api.main:create_app`."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel

from api import logs, openapi, problems, tracing
from api.dashboard.mount import mount
from api.middleware import Around
from api.routes import (
    artifacts,
    catalog,
    comparisons,
    credentials,
    estimates,
    events,
    health,
    jobs,
    keys,
    metrics,
    project,
    templates,
    verbs,
    webhook_messages,
    webhooks,
    workers,
)
from api.settings import Settings
from api.state import State
from lathe.models import ApiKeyCreate
from lathe.webhook_models import WebhookEndpointCreate, WebhookEndpointUpdate, WebhookReplay
from optcore.recipe import Recipe
from optcore.references import Publish

BODIES: list[type[BaseModel]] = [
    Recipe,
    Publish,
    WebhookEndpointCreate,
    WebhookEndpointUpdate,
    WebhookReplay,
    ApiKeyCreate,
    credentials.CredentialPut,
]
"""Models of bodies that routes read by themselves."""
ROOMS = (
    *(jobs, estimates, verbs, events, artifacts, catalog, templates, webhooks, webhook_messages),
    *(comparisons, workers, credentials, keys, project, health, metrics),
)
DESCRIPTION = "Optimization-as-a-service for language models: a recipe in, a smaller checkpoint and a report out."


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; settings come from the environment unless given."""
    settings = settings or Settings()
    logs.configure(settings.log_level)
    app = Service(
        title="Lathe",
        version="1",
        description=DESCRIPTION,
        lifespan=_lifespan,
        generate_unique_id_function=_operation_id,
        separate_input_output_schemas=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.lathe = State(settings)
    app.add_middleware(Around)
    problems.install(app)
    for room in ROOMS:
        app.include_router(room.router)
    mount(app)
    return app


class Service(FastAPI):
    """FastAPI, with our OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        """Made once, on first use."""
        if not self.openapi_schema:
            self.openapi_schema = openapi.document(self, BODIES)
        return self.openapi_schema


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None]:
    state: State = app.state.lathe
    tracing.configure("lathe-api")
    async with state.statements.open(), state.rate_limit.open(), state.failed_sign_ins.open(), state.listener.running():
        yield
    tracing.shut_down()
    state.engine.dispose()


def _operation_id(route: APIRoute) -> str:
    return route.name
