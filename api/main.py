"""The web service: `uvicorn --factory api.main:create_app`."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel

from api import logs, openapi, problems
from api.dashboard.mount import mount
from api.files import open_store
from api.listener import Listener
from api.middleware import Around
from api.rate_limit import RateLimit
from api.routes import (
    artifacts,
    catalog,
    credentials,
    events,
    health,
    jobs,
    keys,
    project,
    verbs,
    webhook_messages,
    webhooks,
)
from api.settings import Settings
from api.store.session import make_engine, make_sessions
from lathe.models import ApiKeyCreate
from lathe.webhook_models import WebhookEndpointCreate, WebhookEndpointUpdate, WebhookReplay
from optcore.recipe import Recipe
from optcore.references import Publish

FRESH_seconds = 1.0
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
    *(jobs, verbs, events, artifacts, catalog, webhooks, webhook_messages),
    *(credentials, keys, project, health),
)
DESCRIPTION = "Optimization-as-a-service for language models: a recipe in, a smaller checkpoint and a report out."


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; settings come from the environment unless given."""
    settings = settings or Settings()
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
    app.state.settings = settings
    app.state.engine = make_engine(settings.database_url, pool_size=10, fresh_seconds=FRESH_seconds)
    app.state.sessions = make_sessions(app.state.engine)
    app.state.listener = Listener(settings.database_url)
    app.state.rate_limit = RateLimit(settings.rate_limit, settings.rate_limit_storage.get_secret_value())
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
    logs.configure(app.state.settings.log_level)
    app.state.store = open_store(app.state.settings)
    async with app.state.listener.running():
        yield
    app.state.engine.dispose()


def _operation_id(route: APIRoute) -> str:
    return route.name
