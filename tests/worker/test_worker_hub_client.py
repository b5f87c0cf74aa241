"""How long the Hub asks us to wait, in each of the ways in which it says so."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from huggingface_hub import get_session

from worker.hub_client import ANSWER_seconds, asked_wait_seconds, bound_waits


def _error(headers: dict[str, str]) -> Exception:
    request = httpx.Request("GET", "http://127.0.0.1:9")
    return httpx.HTTPStatusError("busy", request=request, response=httpx.Response(429, headers=headers))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"Retry-After": "120"}, 120),
        ({"Retry-After": "soon"}, 0),
        ({"Retry-After": "-5"}, 0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"RateLimit": '"api";r=0;t=55', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, 55),
        ({"RateLimit": '"api";r=12;t=55'}, 0),
    ],
)
def test_what_the_hub_asks_for(headers: dict[str, str], seconds: float) -> None:
    assert asked_wait_seconds(_error(headers)) == seconds


def test_a_date_is_a_wait_too() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=500))
    assert asked_wait_seconds(_error({"Retry-After": date})) == pytest.approx(500, abs=10)


def test_no_answer_asks_for_nothing() -> None:
    assert asked_wait_seconds(OSError("gone")) == 0


def test_waits_are_bounded_once() -> None:
    bound_waits()
    hooks = list(get_session().event_hooks["response"])
    bound_waits()
    assert get_session().event_hooks["response"] == hooks
    assert get_session().timeout == httpx.Timeout(ANSWER_seconds)
