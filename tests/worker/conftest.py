"""A service of its own for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from worker_service import Service


@pytest.fixture
def service(database_url: str, empty_redis_url: str, tmp_path: Path) -> Iterator[Service]:
    """Nothing is started yet."""
    made = Service(database_url, empty_redis_url, tmp_path)
    yield made
    made.close()
