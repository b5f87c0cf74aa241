"""Identifiers: a prefix, then 26 characters that sort by the time they were made."""

import re
import secrets
import time

_ALPHABET = "0123456789abcdefghijklmnopqrstuv"
_LENGTH = 26


def new_id(prefix: str) -> str:
    """`prefix_` and 128 bits like a UUIDv7 (48 of milliseconds, 12 of their fraction, 68 random), sortable base 32."""
    milliseconds, rest_ns = divmod(time.time_ns(), 1_000_000)
    value = (milliseconds << 80) | (rest_ns * 4096 // 1_000_000) << 68 | secrets.randbits(68)
    digits = (_ALPHABET[(value >> shift) & 31] for shift in range(5 * (_LENGTH - 1), -1, -5))
    return f"{prefix}_{''.join(digits)}"


def is_id(prefix: str, text: str) -> bool:
    """Whether a text from outside can be an id at all: what cannot is never sent to the database."""
    return re.fullmatch(rf"{prefix}_[0-9a-v]{{26}}", text) is not None
