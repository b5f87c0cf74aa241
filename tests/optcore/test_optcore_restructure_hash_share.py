"""Hashed embeddings: the hash itself, the fit, and a checkpoint whose head shares them."""

from pathlib import Path

import pytest
import torch
from fixtures.exporting import run_of
from safetensors.torch import load_file

from optcore.algorithms import hashing
from optcore.algorithms.hashing import Hash, buckets_and_signs, fitted_buckets, from_buckets
from optcore.hashed import load_hashed
from optcore.techniques import HashShare

TABLE = "model.embed_tokens.weight"


def finalized(x: int) -> int:
    """MurmurHash3's 32-bit finalizer in Python's integers."""
    x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
    x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
    return x ^ x >> 16


def test_the_hash_is_what_the_format_says() -> None:
    assert finalized(1) == 0x514E28B7  # published, so that the reference is right
    places, signs = buckets_and_signs(torch.arange(2), 4, 10, 7, "murmur3")
    assert places.tolist() == [[0, 6, 0, 3], [0, 3, 5, 3]]
    assert signs.tolist() == [[-1, 1, -1, -1], [1, 1, -1, 1]]
    rows = torch.tensor([0, 5, 2**20, 2**31 + 3])
    places, signs = buckets_and_signs(rows, 300, 2**31 - 1, 12345, "murmur3")
    for r, row in enumerate(rows.tolist()):
        for column in (0, 1, 299):
            hashed = finalized((finalized(row ^ 12345) + 0x9E3779B9 * column) % 2**32)
            assert int(places[r, column]) == hashed % (2**31 - 1)
            assert int(signs[r, column]) == 1 - 2 * (finalized(hashed ^ 0x85157AF5) % 2)


def test_places_and_signs_are_spread_evenly() -> None:
    places, signs = buckets_and_signs(torch.arange(1000), 64, 640, 0, "murmur3")
    counts = torch.bincount(places.flatten(), minlength=640)
    assert 640 * 0.8 < float(((counts - 100.0).square() / 100).sum()) < 640 * 1.2  # chi-squared with 639 degrees
    assert abs(float(signs.float().mean())) < 4 / 64_000**0.5
    assert buckets_and_signs(torch.arange(2), 3, 4, 9, "modulo")[0].tolist() == [[0, 1, 2], [3, 0, 1]]


@pytest.mark.parametrize("hash_", ["murmur3", "modulo"])
def test_buckets_are_the_least_squares_of_the_whole_system(hash_: Hash, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_ROWS_elements", 20)  # several blocks of rows
    random = torch.Generator().manual_seed(0)
    table, counts = torch.randn(12, 8, generator=random), torch.randint(1, 9, (12,), generator=random)
    places, signs = buckets_and_signs(torch.arange(12), 8, 17, 3, hash_)
    matrix = torch.zeros(96, 17, dtype=torch.float64)
    matrix[torch.arange(96), places.flatten()] = signs.flatten().double()
    root = counts.double().sqrt().repeat_interleave(8)
    solved = torch.linalg.lstsq(matrix * root[:, None], table.flatten().double() * root, driver="gelsd").solution
    found = fitted_buckets(table, 17, 3, hash_, counts)
    torch.testing.assert_close(found, solved)
    torch.testing.assert_close(from_buckets(found, (12, 8), 3, hash_).flatten(), matrix @ solved)


def test_a_table_that_was_hashed_is_fitted_exactly() -> None:
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).bfloat16()
    table = from_buckets(values, (40, 30), 5, "murmur3")
    assert torch.equal(fitted_buckets(table, 50, 5, "murmur3").bfloat16(), values)
    assert set(table.abs().unique().tolist()) == set(values.abs().tolist())


def test_the_checkpoint_has_its_own_numbers_shared(stdlib_model: Path, tmp_path: Path) -> None:
    run = run_of(stdlib_model, stdlib_model, tmp_path / "out")
    run.seed = 11
    HashShare(ratio=0.25).apply(run)
    before, after = (load_file(folder / "model.safetensors") for folder in (stdlib_model, run.out))
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == [TABLE]
    buckets = load_file(run.out / "hashed.safetensors")[f"{TABLE}.buckets"]
    assert (len(buckets), buckets.dtype) == (2048 * 256 // 4, torch.bfloat16)
    assert torch.equal(from_buckets(buckets, (2048, 256), 11, "murmur3"), after[TABLE])
    document = load_hashed(run.out)
    assert document is not None
    assert document.tensors[TABLE].seed == 11
    # four numbers in each bucket keep a quarter of the energy of independent ones
    assert 0.6 < document.tensors[TABLE].relative_error < 0.95
