"""The times between attempts: the standard's, the receiver's wish, and a pause for one that cannot keep up."""

import pytest

from worker.backoff import DELAYS_seconds, next_delay_seconds, pause_seconds, retry_after_seconds


def test_delays_follow_the_standard_and_end() -> None:
    for attempts in range(1, len(DELAYS_seconds)):
        delay = next_delay_seconds(attempts)
        assert delay is not None
        assert DELAYS_seconds[attempts] <= delay <= DELAYS_seconds[attempts] * 1.2
    assert next_delay_seconds(len(DELAYS_seconds)) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("soon", 0),
        ("-5", 0),
        ("120", 120),
        ("99999999", 86400),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
    ],
)
def test_retry_after_is_read_within_reason(value: str | None, seconds: float) -> None:
    assert retry_after_seconds(value) == seconds


@pytest.mark.parametrize("asked", [1, 120, 4 * 3600])
def test_no_attempt_is_made_before_the_receiver_wants_one(asked: float) -> None:
    delay = next_delay_seconds(1, asked)
    assert delay is not None
    assert max(asked, 5) <= delay <= max(asked, 5) * 1.2


@pytest.mark.parametrize(
    ("status", "asked", "pause"),
    [(429, 0, 60), (502, 0, 60), (504, 90, 90), (429, 86400, 3600), (None, 0, 60), (500, 0, 0), (503, 90, 0)],
)
def test_a_receiver_that_cannot_keep_up_is_left_alone_for_a_while(
    status: int | None, asked: float, pause: float
) -> None:
    assert pause_seconds(status, asked) == pause
