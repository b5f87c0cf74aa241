"""The form for a new job."""

import re
import secrets
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import RedirectResponse

from api import admission
from api.audit import TrailDep
from api.auth import Caller
from api.dashboard import recipe_text
from api.dashboard.form import FieldsDep
from api.dashboard.pages import PageRoute, page
from api.dashboard.session import OURS, EditorDep
from api.deps import SessionDep, SessionsDep, SettingsDep
from api.errors import ServiceError
from api.lifecycle import Origin
from api.store import jobs
from optcore.errors import OptError
from optcore.mixes import MIXES
from optcore.recipe import Recipe, recipe_from
from optcore.schemes import PRESETS

router = APIRouter(route_class=PageRoute, include_in_schema=False)

EXAMPLE = """\
name: my first job
model: {id: Qwen/Qwen3-0.6B}
calibration: {dataset: python-stdlib, samples: 64, sequence_length: 512}
chain:
  - {technique: ptq, scheme: nvfp4}
"""
_ONCE = re.compile(r"[\w-]{22}")


@router.get("/new")
def show_form(
    session: SessionDep, viewer: EditorDep, like: Annotated[str | None, Query(max_length=64)] = None
) -> Response:
    """The form: an example, or the recipe of a job of the reader's."""
    text = recipe_from(jobs.get(session, viewer.project_id, like).recipe).to_yaml() if like else EXAMPLE
    return _form(viewer, text)


@router.post("/new", dependencies=[OURS])
def submit_recipe(
    sessions: SessionsDep, settings: SettingsDep, viewer: EditorDep, trail: TrailDep, fields: FieldsDep
) -> Response:
    """Submit the recipe, once however often the button is pressed; or show what there is to correct."""
    text = fields.get("recipe", "").replace("\r\n", "\n")
    try:
        recipe = admission.admit(settings, recipe_from(recipe_text.read(text)))
        key = _key(fields.get("once", ""), recipe)
        origin = Origin(viewer.key_id, trail.request_id, trail.address, key)
        job = admission.submit_checked(sessions, viewer.project_id, recipe, origin)
    except (OptError, ServiceError) as error:
        return _form(viewer, text, error)
    return RedirectResponse(f"/jobs/{job.id}", status_code=303)


def _key(once: str, recipe: Recipe) -> str | None:
    """This showing of the form with this recipe: going back and submitting another one is a new job."""
    return f"{once}-{recipe.digest[:16]}" if _ONCE.fullmatch(once) else None


def _form(viewer: Caller, text: str, error: OptError | ServiceError | None = None) -> Response:
    return page(
        "new.html",
        status=422 if error else 200,
        viewer=viewer.project_name,
        text=text,
        complaints=recipe_text.complaints(error, text) if error else [],
        once=secrets.token_urlsafe(16),
        schemes=[*PRESETS.values(), *MIXES.values()],
    )
