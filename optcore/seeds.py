"""Seeds for random numbers that depend on several things."""

from optcore.frozen import digest_of

_DIGITS = 8
"""Of the digest: 32 bits are all that torch's generator on the CPU looks at, so shifted numbers would be lost."""


def seed_of(*parts: int | str) -> int:
    """A seed of 32 bits, another one when any of the parts is another."""
    return int(digest_of(list(parts))[:_DIGITS], 16)
