"""The hashing trick for a matrix: element (i, j) is sign(i, j) times number bucket(i, j) of a shorter vector.

W_ij = xi(i, j) w[h(i, j)] (Chen et al., "Compressing Neural Networks with the Hashing Trick", arXiv:1504.04788,
equations 4 and 7). Legend: R rows, K columns, B buckets.

The hash is part of the file format and never changes; all of it is mod 2^32:

    mix(x) = the 32-bit finalizer of MurmurHash3: x ^= x >> 16; x *= 0x85ebca6b; x ^= x >> 13; x *= 0xc2b2ae35;
             x ^= x >> 16
    h      = mix(mix(i ^ seed) + 0x9e3779b9 * j)
    bucket = h mod B
    sign   = -1 where mix(h ^ 0x85157af5) is odd, else 1
"""

from collections.abc import Iterator
from typing import Literal

import torch

Hash = Literal["murmur3", "modulo"]
_LOW_32 = 0xFFFFFFFF
_ROWS_elements = 2**22


def buckets_and_signs(
    rows_R: torch.Tensor, columns: int, buckets: int, seed: int, hash_: Hash
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bucket [R, K], int64, and sign [R, K], int8, of the elements of some rows, given by number.

    `modulo` is the trivial hash: elements are dealt out row by row, bucket (i K + j) mod B, and no sign changes.
    """
    columns_K = torch.arange(columns, device=rows_R.device)
    if hash_ == "modulo":
        places_RK = (rows_R[:, None] * columns + columns_K) % buckets
        return places_RK, torch.ones_like(places_RK, dtype=torch.int8)
    hashed_RK = _mix((_mix(rows_R ^ seed)[:, None] + _times(columns_K, 0x9E3779B9)) & _LOW_32)
    signs_RK = 1 - 2 * (_mix(hashed_RK ^ 0x85157AF5) & 1)
    return hashed_RK % buckets, signs_RK.to(torch.int8)


def fitted_buckets(
    weight_RK: torch.Tensor, buckets: int, seed: int, hash_: Hash, counts_R: torch.Tensor | None = None
) -> torch.Tensor:
    """The bucket values [B], float64, that are nearest to a matrix in squares, rows weighted by `counts_R` > 0.

    Each element is in one bucket, so the least squares are its weighted means of sign times value; 0 where it is empty.
    """
    total = torch.zeros(buckets, dtype=torch.float64, device=weight_RK.device)
    mass = torch.zeros_like(total)
    for rows_R in _blocks(weight_RK):
        place_RK, sign_RK = buckets_and_signs(rows_R, weight_RK.shape[1], buckets, seed, hash_)
        count_R1 = torch.ones_like(rows_R)[:, None] if counts_R is None else counts_R[rows_R, None]
        share_RK = count_R1.double().expand(place_RK.shape)
        total.index_add_(0, place_RK.flatten(), (share_RK * sign_RK * weight_RK[rows_R].double()).flatten())
        mass.index_add_(0, place_RK.flatten(), share_RK.flatten())
    return total / mass.where(mass > 0, 1)


def from_buckets(values_B: torch.Tensor, shape_RK: tuple[int, int], seed: int, hash_: Hash) -> torch.Tensor:
    """The matrix [R, K] in the type of its buckets."""
    weight_RK = values_B.new_empty(shape_RK)
    for rows_R in _blocks(weight_RK):
        place_RK, sign_RK = buckets_and_signs(rows_R, shape_RK[1], len(values_B), seed, hash_)
        weight_RK[rows_R] = values_B[place_RK] * sign_RK
    return weight_RK


def _blocks(weight_RK: torch.Tensor) -> Iterator[torch.Tensor]:
    """Numbers of a few rows at a time: places and signs take many times the memory of a row."""
    rows, columns = weight_RK.shape
    yield from torch.arange(rows, device=weight_RK.device).split(max(1, _ROWS_elements // max(1, columns)))


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = x ^ (x >> 16)
    x = _times(x, 0x85EBCA6B)
    x = x ^ (x >> 13)
    x = _times(x, 0xC2B2AE35)
    return x ^ (x >> 16)


def _times(x: torch.Tensor, factor: int) -> torch.Tensor:
    """x times a factor mod 2^32, both below 2^32, in halves: the whole product would not fit into a signed int64."""
    high = ((x * (factor >> 16)) & 0xFFFF) << 16
    return (x * (factor & 0xFFFF) + high) & _LOW_32
