"""The Hub's client with our errors: what the user can do about it, and whether trying again may help.

Runs on huggingface_hub 1.x (httpx) and 2.x (httpx2): only `HfApi` methods, and no exception type of either transport.
"""

import errno
import os
import time
from collections.abc import Callable
from math import inf
from typing import TypeVar

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars
from pydantic import Field

from optcore.errors import HubUnavailable, OptError, OutOfDisk, SourceGated, SourceNotFound
from optcore.frozen import Frozen

T = TypeVar("T")

WAITS_seconds = (1.0, 5.0)
"""Between tries of one call, on top of what the client does by itself."""

# httpx.HTTPError or httpx2.HTTPError, whichever the client was built on: connections refused, timeouts, broken answers.
TransportError: type[Exception] = next(base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
# The client's own errors are one of the first two; xet reports what it has no better name for as RuntimeError.
ClientError = (TransportError, OSError, EntryNotFoundError, HFValidationError, RuntimeError)

_CREDENTIAL = "store a Hub credential that may read it (for the command line: set HF_TOKEN)"


class HubRepo(Frozen):
    """A repository as a recipe names it, and the places in the recipe that do."""

    kind: str = Field(pattern="^(model|dataset)$")
    id: str
    revision: str
    id_field: str
    revision_field: str

    def __str__(self) -> str:
        return f"{self.kind} {self.id}@{self.revision}"


def hub_api(token: str | bool | None = None) -> HfApi:
    """The client for `HF_ENDPOINT`, as the environment says now, not when the client was imported.

    The token `False` makes it a stranger, whatever token this account has.
    """
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()  # what they would be written to is a log
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token, library_name="lathe")


def patiently(call: Callable[[], T], repo: HubRepo, until: float = inf) -> T:
    """Run a call that may be repeated; raises our errors, an unavailable Hub only after the last try.

    None begins after `until`, by the monotonic clock.
    """
    for wait in (*WAITS_seconds, None):
        if time.monotonic() > until:
            raise HubUnavailable(f"the Hub answers too slowly for {repo}", remedy="try again later")
        try:
            return call()
        except ClientError as error:
            problem = explain(error, repo)
            if wait is None or not problem.retryable or time.monotonic() + wait > until:
                raise problem from error
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def explain(error: Exception, repo: HubRepo) -> OptError:
    """Our error for one of the client's."""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return explain(error.__cause__, repo)  # the client looked in its cache because it could not reach the Hub
    return _refused(error, repo) or _absent(error, repo) or _unavailable(error, repo)


def _refused(error: Exception, repo: HubRepo) -> OptError | None:
    status = status_of(error)
    if isinstance(error, GatedRepoError):
        remedy = f"ask for access on the {repo.kind}'s page, then {_CREDENTIAL}"
        return SourceGated(f"{repo} is gated, and we have no access", remedy=remedy, field=repo.id_field)
    if status in (401, 403) and not isinstance(error, RepositoryNotFoundError):
        return SourceGated(f"the Hub refused {repo} (HTTP {status})", remedy=_CREDENTIAL, field=repo.id_field)
    return None


def _absent(error: Exception, repo: HubRepo) -> OptError | None:
    if isinstance(error, RevisionNotFoundError):
        remedy = "name a branch, a tag or a full commit that exists"
        message = f"{repo.kind} {repo.id} has no revision {repo.revision}"
        return SourceNotFound(message, remedy=remedy, field=repo.revision_field)
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        remedy = f"check the spelling; if the {repo.kind} is private, {_CREDENTIAL}"
        return SourceNotFound(f"there is no {repo.kind} {repo.id} that we may see", remedy=remedy, field=repo.id_field)
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return SourceNotFound(f"a file of {repo} is gone", remedy="name another revision", field=repo.revision_field)
    return None


def _unavailable(error: Exception, repo: HubRepo) -> OptError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfDisk(f"no space left for {repo}", remedy="free space in the work folder", field=repo.id_field)
    status = status_of(error)
    what = f"answered HTTP {status}" if status else f"did not answer ({type(error).__name__})"
    return HubUnavailable(f"the Hub {what} for {repo}", remedy="try again later; check HF_ENDPOINT and the network")


def status_of(error: Exception) -> int | None:
    """The HTTP status that the Hub answered, if it did."""
    return int(error.response.status_code) if isinstance(error, HfHubHTTPError) else None
