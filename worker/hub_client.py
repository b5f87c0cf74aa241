"""Bounds on how long the Hub's client waits: by itself forever for an answer, and as long as the Hub tells it to."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from huggingface_hub import get_session
from huggingface_hub.utils import hf_raise_for_status, parse_ratelimit_headers  # type: ignore[attr-defined]

ANSWER_seconds = 300.0
"""For a connection, and between two pieces of an answer: a commit of thousands of files takes minutes."""
PATIENCE_seconds = 60.0
"""A longer wait that the Hub asks for is spent by the schedule of the push, and not by a worker that holds it."""
_BUSY = (429, 503, 504)


def bound_waits() -> None:
    """Bound them in this process's session, which every `HfApi` shares."""
    session = get_session()
    session.timeout = ANSWER_seconds
    hooks = session.event_hooks
    if _refuse_a_long_wait not in hooks["response"]:
        session.event_hooks = {**hooks, "response": [*hooks["response"], _refuse_a_long_wait]}


def asked_wait_seconds(error: Exception) -> float:
    """How long the Hub's answer asks to wait; 0 when it does not say."""
    response = getattr(error, "response", None)
    return _asked(response) if response is not None else 0.0


def _refuse_a_long_wait(response: Any) -> None:
    if response.status_code in _BUSY and _asked(response) > PATIENCE_seconds:
        response.read()
        hf_raise_for_status(response)


def _asked(response: Any) -> float:
    said = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", said):
        return float(said)
    limit = parse_ratelimit_headers(response.headers)
    return max(_seconds_until(said), float(limit.reset_in_seconds) if limit and limit.remaining == 0 else 0.0)


def _seconds_until(date: str) -> float:
    try:
        at = parsedate_to_datetime(date)
    except ValueError:
        return 0.0
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
