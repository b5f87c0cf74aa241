"""What a readable recipe must also meet: its parts fit, its paths are allowed, its credential exists, there is room."""

import os
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api import lifecycle
from api.audit import Trail
from api.auth import Caller
from api.errors import Invalid, QuotaExceeded
from api.settings import Settings
from api.store import credentials, projects
from api.store.session import Sessions
from api.store.statements import Statements
from optcore.errors import SourceNotFound
from optcore.paths import with_paths
from optcore.plan import check
from optcore.recipe import Recipe


def admit(settings: Settings, recipe: Recipe) -> Recipe:
    """The recipe with local paths made absolute, symbolic links resolved. Raises `Invalid` or `OptError`."""
    check(recipe)
    return with_paths(recipe, lambda path, pointer: _local(settings, path, pointer))


async def submit(
    statements: Statements, sessions: Sessions, caller: Caller, trail: Trail, recipe: Recipe, key: str | None
) -> lifecycle.Submitted:
    """Queue the job of an admitted recipe, once for each idempotency key: with one statement, where that can be all.

    Raises what `submit_checked` does.
    """
    origin = lifecycle.Origin(caller.key_id, trail.request_id, trail.address, key)
    done = await lifecycle.submit_alone(statements, caller.project_id, recipe, origin)
    if done is None:
        done = await run_in_threadpool(submit_checked, sessions, caller.project_id, recipe, origin)
    return done


def submit_checked(
    sessions: Sessions, project_id: str, recipe: Recipe, origin: lifecycle.Origin
) -> lifecycle.Submitted:
    """The same in a transaction: what remains to be checked is looked up by the insertion, and a refusal undoes it.

    A repeat of what was accepted is never refused. Raises `IdempotencyMismatch`, `Conflict`, `QuotaExceeded` and
    `Invalid`.
    """
    with sessions.begin() as session:
        submitted = lifecycle.submit(session, project_id, recipe, origin)
        if submitted.inserted and submitted.inserted.has_quota:
            _within_limits(session, project_id)
        if submitted.inserted and submitted.inserted.lacks_credential and recipe.publish:
            raise _unknown(recipe.publish.credential, "/publish/credential")
    return submitted


def known_credential(session: Session, project_id: str, name: str, field: str) -> None:
    """Raises `Invalid` when the project stored no Hub token under that name."""
    if not credentials.known(session, project_id, name):
        raise _unknown(name, field)


def _within_limits(session: Session, project_id: str) -> None:
    """Raises `QuotaExceeded` when the project had no room for the job that was just inserted.

    Its row stays locked until the commit, so that two requests cannot share the last place.
    """
    limits, used = projects.hold(session, project_id), projects.usage(session, project_id)
    for what, limit, value, remedy in (
        ("unfinished jobs", limits.max_unfinished, used.unfinished - 1, "wait for one to end, or cancel one"),
        ("bytes of artifacts", limits.max_storage_bytes, used.storage_bytes, "delete jobs that are over"),
        ("GPU seconds in 30 days", limits.max_gpu_seconds, round(used.gpu_seconds), "wait, or ask the operator"),
    ):
        if limit is not None and value >= limit:
            raise QuotaExceeded(f"the project has {value} of its {limit} {what}", remedy=remedy)


def _local(settings: Settings, path: str, field: str) -> str:
    if not settings.model_roots:
        raise _refused("path_not_allowed", "this service reads no local paths", "name a Hub repository instead", field)
    roots = [root.resolve() for root in settings.model_roots]
    allowed = [found for found in _meanings(path, roots) if any(found.is_relative_to(root) for root in roots)]
    if not allowed:
        raise _refused(
            "path_not_allowed",
            f"{path!r} lies outside the folders that this service may read",
            "use a path below a folder of LATHE_MODEL_ROOTS, or a Hub repository",
            field,
        )
    existing = next((found for found in allowed if os.path.exists(found)), None)
    if existing is None:
        raise SourceNotFound(f"no such file or folder: {path}", remedy="check the spelling of the path", field=field)
    return str(existing)


def _meanings(path: str, roots: Iterable[Path]) -> list[Path]:
    """What a path can mean: relative ones are tried below each root, then below the folder that we run in."""
    return [Path(os.path.realpath(base / path)) for base in (*roots, Path.cwd())]


def _unknown(credential: str, field: str) -> Invalid:
    remedy = f"store a Hub token with PUT /v1/credentials/{credential}"
    return _refused("credential_unknown", f"you have no credential {credential!r}", remedy, field)


def _refused(code: str, message: str, remedy: str, field: str) -> Invalid:
    error = Invalid(message, remedy=remedy, field=field)
    error.code = code
    return error
