"""The form for a new job: its fields and the YAML beside them, both of one draft."""

import re
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.orm import Session

from api import admission
from api.audit import TrailDep
from api.auth import Caller
from api.dashboard import recipe_text
from api.dashboard.form import PairsDep
from api.dashboard.pages import PageRoute, is_partial, page
from api.dashboard.recipe_form import draft as drafts
from api.dashboard.recipe_form.draft import Draft
from api.dashboard.recipe_form.shown import shown
from api.dashboard.session import OURS, EditorDep
from api.deps import SessionDep, SessionsDep, SettingsDep
from api.errors import NotFound, ServiceError, TooManyRequests, Unavailable
from api.estimates import refusal
from api.lifecycle import Origin
from api.settings import Settings
from api.state import state_of
from api.store import credentials, jobs
from api.templates import templates
from optcore.errors import OptError
from optcore.recipe import Recipe, recipe_from

router = APIRouter(route_class=PageRoute, include_in_schema=False)

EXAMPLE = """\
name: my first job
model: {id: Qwen/Qwen3-0.6B}
calibration: {dataset: python-stdlib, samples: 64, sequence_length: 512}
chain:
  - {technique: ptq, scheme: nvfp4}
"""
_ONCE = re.compile(r"[\w-]{22}")
NameDep = Annotated[str | None, Query(max_length=64)]


@router.get("/new")
def show_form(
    request: Request,
    session: SessionDep,
    settings: SettingsDep,
    viewer: EditorDep,
    like: NameDep = None,
    template: NameDep = None,
) -> Response:
    """The form: an example, a template, or the recipe of a job of the reader's."""
    if like:
        draft = drafts.of_recipe(recipe_from(jobs.get(session, viewer.project_id, like).recipe))
    elif template:
        draft = _of_template(template)
    else:
        draft = drafts.of_text(EXAMPLE)
    error = _judge(session, settings, viewer, draft)
    return _form(request, session, viewer, draft, error, chosen=template)


@router.post("/new/draft", dependencies=[OURS])
def change_draft(
    request: Request, session: SessionDep, settings: SettingsDep, viewer: EditorDep, pairs: PairsDep
) -> Response:
    """The same draft after a field, the YAML or a button changed it: the parts for a script, the page for people."""
    draft = drafts.of_posted(pairs)
    error = _judge(session, settings, viewer, draft)
    return _form(request, session, viewer, draft, error, once=dict(pairs).get("once", ""))


@router.post("/new/estimate", dependencies=[OURS])
async def estimate_draft(request: Request, viewer: EditorDep, pairs: PairsDep) -> Response:
    """What the recipe in the YAML would take, for the form's panel; or when that asks again."""
    text = dict(pairs).get("recipe", "")
    try:
        found = await state_of(request).estimator.estimate(viewer.project_id, recipe_text.read(text))
    except (TooManyRequests, Unavailable) as busy:
        return page("estimate_busy.html", again=int(busy.headers["Retry-After"]))
    except (OptError, ServiceError) as error:
        found = refusal(error)
    return page("estimate.html", estimate=found)


@router.post("/new", dependencies=[OURS])
def submit_recipe(
    request: Request, sessions: SessionsDep, settings: SettingsDep, viewer: EditorDep, trail: TrailDep, pairs: PairsDep
) -> Response:
    """Submit the recipe, once however often the button is pressed; or show what there is to correct."""
    once = dict(pairs).get("once", "")
    draft = drafts.of_posted([pair for pair in pairs if pair[0] != "do"])
    try:
        recipe = admission.admit(settings, _readable(draft))
        origin = Origin(viewer.key_id, trail.request_id, trail.address, _key(once, recipe))
        job = admission.submit_checked(sessions, viewer.project_id, recipe, origin)
    except (OptError, ServiceError) as error:
        with sessions.begin() as session:
            return _form(request, session, viewer, draft, error, once=once, status=422)
    return RedirectResponse(f"/jobs/{job.id}", status_code=303)


def _of_template(name: str) -> Draft:
    found = templates().get(name)
    if found is None:
        raise NotFound("there is no such template", remedy="see the list on the page for a new job")
    return Draft(found.recipe, drafts.to_yaml(found.recipe))


def _readable(draft: Draft) -> Recipe:
    """The recipe that a draft is. Raises what stands against it."""
    if draft.unreadable:
        raise draft.unreadable
    return recipe_from(draft.document)


def _judge(session: Session, settings: Settings, viewer: Caller, draft: Draft) -> OptError | ServiceError | None:
    """What submitting the draft would be refused for."""
    try:
        recipe = admission.admit(settings, _readable(draft))
        if recipe.publish:
            name = recipe.publish.credential
            admission.known_credential(session, viewer.project_id, name, "/publish/credential")
    except (OptError, ServiceError) as error:
        return error
    return None


def _key(once: str, recipe: Recipe) -> str | None:
    """This showing of the form with this recipe: going back and submitting another one is a new job."""
    return f"{once}-{recipe.digest[:16]}" if _ONCE.fullmatch(once) else None


def _form(
    request: Request,
    session: Session,
    viewer: Caller,
    draft: Draft,
    error: OptError | ServiceError | None,
    *,
    status: int = 200,
    once: str = "",
    chosen: str | None = None,
) -> Response:
    complaints = recipe_text.complaints(error, draft.text) if error else []
    names = tuple(each.name for each in credentials.of(session, viewer.project_id))
    values: dict[str, Any] = {"draft": draft, **shown(draft, complaints, {"/publish/credential": names})}
    if is_partial(request):
        return page("new_draft.html", **values)
    return page(
        "new.html",
        status=status,
        viewer=viewer.project_name,
        once=once if _ONCE.fullmatch(once) else secrets.token_urlsafe(16),
        templates=list(templates().values()),
        chosen=chosen,
        was_refused=status != 200,
        **values,
    )
