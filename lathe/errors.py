"""Everything that the SDK raises, as one tree.

    LatheError
    ├── ConnectionFailed          no answer from the service, after the retries
    ├── BadResponse               an answer that the API never gives: a proxy's page, a newer major version
    ├── APIError                  the service said no; carries its RFC 9457 `problem`
    │   ├── BadRequest            400
    │   ├── Unauthorized          401  the API key is missing or wrong
    │   ├── Forbidden             403
    │   ├── NotFound              404
    │   ├── Conflict              409  the job is in a state that forbids it
    │   │   └── RequestInProgress      the same Idempotency-Key is being worked on
    │   ├── PayloadTooLarge       413
    │   ├── Unprocessable         422  a well-formed body that says something impossible
    │   │   └── RecipeRefused          the recipe; `field` points to the place
    │   ├── TooManyRequests       429
    │   └── ServerError           5xx
    ├── JobNotSucceeded           asked for the result of a job that has none
    │   ├── JobFailed             carries the typed `failure`
    │   └── JobCancelled
    ├── WaitTimeout               the job is still running; also a TimeoutError
    ├── DownloadError             a file of the result that cannot be stored
    │   ├── UnsafePath            its name leaves the folder
    │   └── DigestMismatch        its bytes are not the ones that the service hashed
    └── WebhookVerificationError  not signed by the service, or too old

`str(error)` says what and what was found; `remedy` says what to do; `field` is the JSON Pointer into the recipe.
"""

from lathe import models
from lathe.models import Problem, ProblemError
from optcore.errors import Failure


class LatheError(Exception):
    """Base of the tree."""

    def __init__(self, message: str, *, remedy: str = "", field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.field = field


class ConnectionFailed(LatheError):
    """No answer from the service, after the retries."""


class BadResponse(LatheError):
    """An answer that the API never gives."""


class APIError(LatheError):
    """The service said no."""

    def __init__(self, problem: Problem, *, retry_after_seconds: float | None = None) -> None:
        field = problem.errors[0].pointer if problem.errors else ""
        super().__init__(problem.detail or problem.title, remedy=problem.remedy, field=field)
        self.problem = problem
        self.retry_after_seconds = retry_after_seconds

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.problem.status

    @property
    def code(self) -> str:
        """A stable name for programs, such as `job_not_found`."""
        return self.problem.code

    @property
    def errors(self) -> tuple[ProblemError, ...]:
        """Every place in the request that is wrong, with the reason."""
        return self.problem.errors

    @property
    def request_id(self) -> str:
        """What to give to the operator, who finds it in the logs."""
        return self.problem.request_id


class BadRequest(APIError):
    """400: a request that cannot be read."""


class Unauthorized(APIError):
    """401: the API key is missing or wrong."""


class Forbidden(APIError):
    """403: the API key may not do this."""


class NotFound(APIError):
    """404: no such thing, or none that this API key may see."""


class Conflict(APIError):
    """409: the job is in a state that forbids it."""


class RequestInProgress(Conflict):
    """409: a request with the same Idempotency-Key is being worked on."""


class PayloadTooLarge(APIError):
    """413: the body is larger than the service takes."""


class Unprocessable(APIError):
    """422: a well-formed body that says something impossible."""


class RecipeRefused(Unprocessable):
    """422: the recipe says something impossible."""


class TooManyRequests(APIError):
    """429: come back after `retry_after_seconds`."""


class ServerError(APIError):
    """5xx: the service is broken, or not ready."""


class JobNotSucceeded(LatheError):
    """Asked for the result of a job that has none."""

    def __init__(self, job: models.Job, message: str, *, remedy: str = "", field: str = "") -> None:
        super().__init__(message, remedy=remedy, field=field)
        self.job = job


class JobFailed(JobNotSucceeded):
    """The job ended with a failure."""

    def __init__(self, job: models.Job, failure: Failure) -> None:
        super().__init__(job, failure.message, remedy=failure.remedy, field=failure.field)
        self.failure = failure


class JobCancelled(JobNotSucceeded):
    """The job was cancelled."""


class WaitTimeout(LatheError, TimeoutError):
    """The job is still running; `job` is what it was when last seen."""

    def __init__(self, job: models.Job, seconds: float) -> None:
        super().__init__(
            f"job {job.id} is still {job.status} after {seconds:g} s", remedy="wait longer, or cancel the job"
        )
        self.job = job


class DownloadError(LatheError):
    """A file of the result that cannot be stored."""


class UnsafePath(DownloadError):
    """A file's name leaves the folder that it is downloaded to."""


class DigestMismatch(DownloadError):
    """A file's bytes are not the ones that the service hashed."""


class WebhookVerificationError(LatheError):
    """A message that the service did not sign, or that is too old."""


_BY_CODE: dict[str, type[APIError]] = {"recipe_invalid": RecipeRefused, "idempotency_in_progress": RequestInProgress}
_BY_STATUS: dict[int, type[APIError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: PayloadTooLarge,
    422: Unprocessable,
    429: TooManyRequests,
}


def api_error(problem: Problem, *, retry_after_seconds: float | None = None) -> APIError:
    """The exception for a problem: by its code, else by its status."""
    by_status = ServerError if problem.status >= 500 else _BY_STATUS.get(problem.status, APIError)
    kind = _BY_CODE.get(problem.code, by_status)
    return kind(problem, retry_after_seconds=retry_after_seconds)
