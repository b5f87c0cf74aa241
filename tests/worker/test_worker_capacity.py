"""What a worker says of its machine."""

import os
from pathlib import Path

import pytest

from optcore.estimate.machine import this_machine
from worker.capacity import capacity, disk_free_bytes, memory_bytes


def test_the_least_limit_is_the_memory_that_an_engine_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.capacity.capacity_bytes", lambda: 48 * 2**30)
    assert memory_bytes() == 48 * 2**30
    assert memory_bytes(16 * 2**30) == 16 * 2**30
    assert memory_bytes(64 * 2**30) == 48 * 2**30


def test_this_machine(tmp_path: Path) -> None:
    """As the engine on it will see it: what was learned of one kind of machine is looked up by the same name."""
    here, engine = capacity(()), this_machine(tmp_path)
    assert (here.cores, here.host_memory_bytes) == (engine.cores, engine.host_memory_bytes)
    assert 0 < (here.host_memory_bytes or 0) <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert (disk_free_bytes(tmp_path) or 0) > 0
    assert disk_free_bytes(tmp_path / "nowhere") is None
