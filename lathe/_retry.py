"""When to send a request again, and how long to wait before."""

import random
from dataclasses import dataclass

from lathe.errors import APIError, ConnectionFailed, LatheError, RequestInProgress

START_seconds = 0.5
CAP_seconds = 8.0
PATIENCE_seconds = 60.0
"""The longest `Retry-After` that is waited for; a longer one is the caller's to plan."""


@dataclass(frozen=True)
class RetryPolicy:
    """Again after no answer, 408, 429, 5xx, and after 409 only while the same Idempotency-Key is being worked on."""

    max_retries: int = 2

    def delay(self, error: LatheError, attempt: int) -> float | None:
        """Seconds to wait after the attempt (counted from 0) that ended in `error`; None to give up."""
        if attempt >= self.max_retries or not worth_retrying(error):
            return None
        asked = error.retry_after_seconds if isinstance(error, APIError) else None
        if asked is None:
            return backoff(attempt)
        return asked if asked <= PATIENCE_seconds else None


def worth_retrying(error: LatheError) -> bool:
    """Whether the same request may succeed a moment later."""
    if isinstance(error, APIError):
        return error.status in (408, 429) or error.status >= 500 or isinstance(error, RequestInProgress)
    return isinstance(error, ConnectionFailed)


def backoff(attempt: int) -> float:
    """Seconds: doubling up to the cap, then up to a quarter off, so that many clients do not come back together."""
    full = min(START_seconds * 2.0 ** min(attempt, 10), CAP_seconds)
    return full * random.uniform(0.75, 1.0)  # noqa: S311  no secret is made of it
