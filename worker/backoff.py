"""When to send a webhook again: the delays of Standard Webhooks 1.0, jitter, never sooner than the receiver asks."""

import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_MINUTE, _HOUR = 60, 3600
DELAYS_seconds = (
    0, 5, 5 * _MINUTE, 30 * _MINUTE, 2 * _HOUR, 5 * _HOUR, 10 * _HOUR, 14 * _HOUR, 20 * _HOUR, 24 * _HOUR
)  # fmt: skip
JITTER = 0.2
RETRY_AFTER_limit_seconds = 24 * _HOUR
OVERLOADED = frozenset({429, 502, 504})
"""Answers of a receiver, or of the proxy before it, that cannot keep up."""
PAUSE_seconds = _MINUTE
PAUSE_limit_seconds = _HOUR


def next_delay_seconds(tries: int, at_least_seconds: float = 0.0) -> float | None:
    """Seconds to wait after `tries` sends that failed (1 or more); None when there is no further one."""
    if tries >= len(DELAYS_seconds):
        return None
    planned = max(float(DELAYS_seconds[tries]), at_least_seconds)
    return planned * random.uniform(1, 1 + JITTER)  # noqa: S311 - spreads load, guards nothing


def pause_seconds(status: int | None, retry_after: float) -> float:
    """How long a receiver gets no message at all: a minute to an hour when it cannot keep up or gave no answer in time.

    `status` is absent for the latter; `retry_after` is what the receiver asked for, in seconds.
    """
    if status is not None and status not in OVERLOADED:
        return 0.0
    return min(max(float(PAUSE_seconds), retry_after), float(PAUSE_limit_seconds))


def retry_after_seconds(value: str | None) -> float:
    """The header, seconds or a date, as seconds from now; 0 when absent or unreadable, at most a day."""
    if not value:
        return 0.0
    try:
        seconds = float(value) if value.strip().isdecimal() else _seconds_until(value)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), float(RETRY_AFTER_limit_seconds))


def _seconds_until(date: str) -> float:
    moment = parsedate_to_datetime(date)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime.now(UTC)).total_seconds()
