"""What can go wrong while publishing. A finished run stays finished: publishing has a state of its own."""

from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

from optcore.errors import HubUnavailable, Kind, OptError
from optcore.references import Publish
from optcore.sources.client import status_of
from worker.hub_client import asked_wait_seconds

_BUSY = (408, 429, 500, 502, 503, 504)


class PublishRefused(OptError):
    """The Hub understood and said no: the credential, the name or the card is not right."""

    code = "publish_refused"
    kind: Kind = "user_error"


class PullRequestClosed(PublishRefused):
    """Somebody closed our pull request: a decision, which we do not undo by ourselves."""

    code = "pull_request_closed"


class HubBusy(HubUnavailable):
    """The Hub said how long it wants to be left alone."""

    def __init__(self, message: str, *, retry_after_seconds: float) -> None:
        super().__init__(message, remedy="try again later", field="/publish")
        self.retry_after_seconds = retry_after_seconds


class PublishConflict(OptError):
    """Somebody committed to the branch between our look and our commit. Nothing of ours is visible."""

    code = "publish_conflict"
    kind: Kind = "upstream_hub"
    retryable = True


class PublishMismatch(OptError):
    """The Hub's hash of a file is not ours."""

    code = "publish_mismatch"
    kind: Kind = "upstream_hub"
    retryable = True


def explain(error: Exception, publish: Publish, token: str) -> OptError:
    """Our error for one of the client's."""
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        return explain(error.__cause__, publish, token)  # an upload in a thread of the client's
    status, repo_id = status_of(error), publish.repo_id
    said = _said(error, token)
    if status in (409, 412):
        message = f"{repo_id} changed while we were publishing to {publish.revision}"
        return PublishConflict(message, remedy="publish again", field="/publish/revision")
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        remedy = f"store a Hub credential that may write to {repo_id}, and name it in `credential`"
        message = f"the Hub does not let us write to {repo_id} (HTTP {status}{said})"
        return PublishRefused(message, remedy=remedy, field="/publish/credential")
    if isinstance(error, HFValidationError):
        return PublishRefused(f"{repo_id!r} is no repository name", remedy="correct it", field="/publish/repo_id")
    if isinstance(error, ValueError):
        message = f"the Hub refused what we publish: {str(error).replace(token, '***')[:300]}"
        return PublishRefused(message, remedy="correct the model card", field="/publish")
    if status is not None and status not in _BUSY:
        remedy = "if this server has no pull requests, publish `via: branch`" if publish.via == "pull_request" else ""
        message = f"the Hub refused what we publish to {repo_id} (HTTP {status}{said})"
        return PublishRefused(message, remedy=remedy, field="/publish")
    what = f"answered HTTP {status}" if status else f"did not answer ({type(error).__name__})"
    message = f"the Hub {what} while publishing to {repo_id}"
    if wait_seconds := asked_wait_seconds(error):
        return HubBusy(message, retry_after_seconds=wait_seconds)
    return HubUnavailable(message, remedy="try again later", field="/publish")


def _said(error: Exception, token: str) -> str:
    """The Hub's own words, which may help, and must not repeat the token."""
    words = (error.server_message or "") if isinstance(error, HfHubHTTPError) else ""
    return f": {words.replace(token, '***')[:300]}" if words else ""
