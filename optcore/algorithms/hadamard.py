"""Hadamard matrices H (entries +-1, H H^T = order * I) whose transforms `optcore.kernels.hadamard` computes.

Orders are m * 2^k: the power of two by Sylvester's doubling, m by Paley's constructions from a prime q ("On orthogonal
matrices", J. Math. Phys. 12, 1933). With m = 12, 20, 28, 36, 44, 52, 60 ... that reaches nearly every model's width.
"""

from functools import lru_cache
from math import isqrt

import torch


def largest_block(size: int, limit: int | None = None) -> int:
    """The largest order up to `limit` that divides `size` and has a transform here; 1 for odd sizes."""
    divisors = {part for low in range(1, isqrt(size) + 1) if size % low == 0 for part in (low, size // low)}
    return max(order for order in divisors if (limit is None or order <= limit) and is_order(order))


def is_order(order: int) -> bool:
    """Whether there is a transform of this order here."""
    return order in (1, 2) or _core_of(order) is not None


def factored(order: int) -> tuple[int, int]:
    """Core m and doublings k of an order m * 2^k."""
    core = 1 if order in (1, 2) else _core_of(order)
    if core is None:
        raise ValueError(f"no Hadamard matrix of order {order} is made here")
    return core, (order // core).bit_length() - 1


@lru_cache
def _core_of(order: int) -> int | None:
    """The smallest core whose doublings reach the order: 1 for a power of two."""
    odd = order
    while odd % 2 == 0:
        odd //= 2
    if odd == 1:
        return 1
    cores = (odd * 2**k for k in range(2, 9))
    return next((core for core in cores if order % core == 0 and _prime_of(core)), None)


def _prime_of(core: int) -> tuple[int, bool] | None:
    """Paley's prime for an order, and whether it is the first construction."""
    if core > 256 or core % 4:
        return None
    if _is_prime(core - 1):  # core % 4 == 0, so it is 3 mod 4
        return core - 1, True
    if core // 2 % 4 == 2 and _is_prime(core // 2 - 1):  # 1 mod 4
        return core // 2 - 1, False
    return None


@lru_cache
def paley(core: int) -> torch.Tensor:
    """A Hadamard matrix of order `core`, float32.

    With Q the quadratic residue characters of i - j mod q and S = [[0, 1], [+-1, Q]]: I + S for q = 3 mod 4, where S is
    skew; for q = 1 mod 4 each entry of S times [[1, 1], [1, -1]], plus each of I times [[1, -1], [-1, -1]].
    """
    found = _prime_of(core)
    assert found is not None
    prime, is_first = found
    residues = {place * place % prime for place in range(1, prime)}
    character = torch.tensor([0.0] + [1.0 if place in residues else -1.0 for place in range(1, prime)])
    place = torch.arange(prime)
    bordered = torch.zeros(prime + 1, prime + 1)
    bordered[0, 1:] = 1
    bordered[1:, 0] = -1 if is_first else 1
    bordered[1:, 1:] = character[(place[:, None] - place) % prime]
    if is_first:
        return bordered + torch.eye(core)
    identity = torch.eye(prime + 1)
    return torch.kron(bordered, torch.tensor([[1.0, 1], [1, -1]])) + torch.kron(
        identity, torch.tensor([[1.0, -1], [-1, -1]])
    )


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))
