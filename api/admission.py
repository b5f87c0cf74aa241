"""What a readable recipe must also meet: its parts fit, its paths are allowed, its credential exists."""

import os
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy.orm import Session

from api.errors import Invalid, QuotaExceeded
from api.settings import Settings
from api.store import credentials, projects
from optcore.errors import SourceNotFound
from optcore.plan import check
from optcore.recipe import Recipe


def admit(session: Session, settings: Settings, project_id: str, recipe: Recipe) -> Recipe:
    """The recipe with local paths made absolute, symbolic links resolved. Raises `Invalid` or `OptError`."""
    check(recipe)
    within_limits(session, project_id)
    if recipe.publish:
        known_credential(session, project_id, recipe.publish.credential, "/publish/credential")
    model, calibration = recipe.model, recipe.calibration
    if model.path is not None:
        model = model.model_copy(update={"path": _local(settings, model.path, "/model/path")})
    if calibration.path is not None:
        calibration = calibration.model_copy(update={"path": _local(settings, calibration.path, "/calibration/path")})
    return recipe.model_copy(update={"model": model, "calibration": calibration})


def known_credential(session: Session, project_id: str, name: str, field: str) -> None:
    """Raises `Invalid` when the project stored no Hub token under that name."""
    if not credentials.known(session, project_id, name):
        remedy = f"store a Hub token with PUT /v1/credentials/{name}"
        raise _refused("credential_unknown", f"you have no credential {name!r}", remedy, field)


def within_limits(session: Session, project_id: str) -> None:
    """Raises `QuotaExceeded` when the project has no room for another job.

    Its row stays locked until the commit, so that two requests cannot share the last place.
    """
    if not projects.has_quota(session, project_id):
        return
    limits, used = projects.hold(session, project_id), projects.usage(session, project_id)
    for what, limit, value, remedy in (
        ("unfinished jobs", limits.max_unfinished, used.unfinished, "wait for one to end, or cancel one"),
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


def _refused(code: str, message: str, remedy: str, field: str) -> Invalid:
    error = Invalid(message, remedy=remedy, field=field)
    error.code = code
    return error
