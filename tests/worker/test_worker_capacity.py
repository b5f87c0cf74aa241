"""What a worker says of its machine."""

import os
from pathlib import Path

import pytest

from worker import cgroup, kernel
from worker.capacity import capacity, disk_free_bytes, memory_bytes


def test_the_least_limit_is_the_memory_that_an_engine_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "memory_bytes", lambda: 64 * 2**30)
    monkeypatch.setattr(cgroup, "memory_limits", lambda: [48 * 2**30, 100 * 2**30])
    assert memory_bytes() == 48 * 2**30
    assert memory_bytes(16 * 2**30) == 16 * 2**30
    monkeypatch.setattr(cgroup, "memory_limits", list)
    assert memory_bytes() == 64 * 2**30


def test_each_group_around_us_may_set_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner.parent / "memory.max").write_text("1073741824\n")
    monkeypatch.setattr(cgroup, "own_folder", lambda: inner)
    assert cgroup.memory_limits() == [2**30]
    monkeypatch.setattr(cgroup, "own_folder", lambda: None)
    assert cgroup.memory_limits() == []


def test_this_machine(tmp_path: Path) -> None:
    here = capacity(())
    assert here.cores == len(os.sched_getaffinity(0))
    assert 0 < (here.host_memory_bytes or 0) <= kernel.memory_bytes()
    assert (disk_free_bytes(tmp_path) or 0) > 0
    assert disk_free_bytes(tmp_path / "nowhere") is None
