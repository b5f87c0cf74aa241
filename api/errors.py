"""Everything that can go wrong in the service, as one tree. No framework is known here.

    ServiceError
    ├── Unauthorized            401  no API key, or one that we do not know
    ├── Forbidden               403  the key does not allow it
    │   └── QuotaExceeded       403  a limit of the project is reached
    ├── NotFound                404  absent, or another tenant's: the same answer
    ├── Conflict                409  the job's state forbids it
    │   └── Fenced              409  a newer claim owns the job: stop, write nothing
    ├── BadRequest              400  a parameter that cannot be used
    ├── Invalid                 422  a body that says something impossible
    ├── IdempotencyMismatch     422  the key was used with another body
    ├── BodyTooLarge            413
    ├── UnsupportedMediaType    415
    ├── RangeNotSatisfiable     416
    ├── TooManyRequests         429  more than the key may ask
    ├── Unavailable             503  something that we depend on does not answer
    │   ├── DatabaseAway        503  it did not answer this time
    │   └── StoreAway           503  the artifact store does not answer, or refuses us
    └── VaultError              500  a stored secret cannot be opened

Engine errors (`optcore.errors`) keep their own tree; `api.problems` turns both into RFC 9457 documents.
"""


class ServiceError(Exception):
    """Base of the tree. Subclasses fix `status`, `code` and `title`; an instance adds message and HTTP headers."""

    status = 500
    code = "internal"
    title = "Internal error"
    retryable = False

    def __init__(self, message: str, *, remedy: str = "", field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.field = field
        self.headers: dict[str, str] = {}


class Unauthorized(ServiceError):
    """No API key, or one that we do not know."""

    status = 401
    code = "unauthorized"
    title = "Not authenticated"


class Forbidden(ServiceError):
    """The API key does not allow it."""

    status = 403
    code = "forbidden"
    title = "Not allowed"


class QuotaExceeded(Forbidden):
    """A limit of the project is reached."""

    code = "quota_exceeded"
    title = "A limit of the project is reached"


class NotFound(ServiceError):
    """It does not exist, or it is another tenant's."""

    status = 404
    code = "not_found"
    title = "Not found"


class Conflict(ServiceError):
    """The state of the job forbids it."""

    status = 409
    code = "conflict"
    title = "Conflict with the current state"


class Fenced(Conflict):
    """A newer claim owns the job, or it is over: stop the engine and write nothing more."""

    code = "fenced"


class BadRequest(ServiceError):
    """A parameter that cannot be used."""

    status = 400
    code = "bad_request"
    title = "Bad request"


class Invalid(ServiceError):
    """A body that says something impossible."""

    status = 422
    code = "invalid"
    title = "Invalid request body"


class IdempotencyMismatch(Invalid):
    """The idempotency key was used before, with another body."""

    code = "idempotency_mismatch"
    title = "Idempotency key used with another body"


class BodyTooLarge(ServiceError):
    """More bytes than a request may have."""

    status = 413
    code = "body_too_large"
    title = "Request body too large"


class UnsupportedMediaType(ServiceError):
    """A body that is no JSON."""

    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"


class RangeNotSatisfiable(ServiceError):
    """A range that starts behind the end of the file."""

    status = 416
    code = "range_not_satisfiable"
    title = "Range not satisfiable"


class TooManyRequests(ServiceError):
    """More requests than the key may send in a while."""

    status = 429
    code = "too_many_requests"
    title = "Too many requests"
    retryable = True


class Unavailable(ServiceError):
    """Something that we depend on does not answer."""

    status = 503
    code = "unavailable"
    title = "Service unavailable"
    retryable = True


class DatabaseAway(Unavailable):
    """The database does not answer."""

    def __init__(self) -> None:
        super().__init__("the database does not answer", remedy="try again in a moment; your work is not lost")
        self.headers = {"Retry-After": "2"}


class StoreAway(Unavailable):
    """The artifact store does not answer, or refuses us."""

    code = "artifact_store_away"


class VaultError(ServiceError):
    """A stored secret cannot be opened."""

    code = "secret_unreadable"
    title = "A stored secret cannot be read"
