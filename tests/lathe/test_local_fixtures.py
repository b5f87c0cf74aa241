"""The servers that every other test stands on."""

import psycopg
import pytest
import redis

pytestmark = pytest.mark.integration


def _tables(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    return {name for (name,) in rows}


def test_each_test_gets_a_migrated_database_of_its_own(database_url: str, empty_database_url: str) -> None:
    assert {"alembic_version", "jobs"} <= _tables(database_url)
    assert _tables(empty_database_url) == set()


def test_the_emptied_broker_holds_nothing(empty_redis_url: str) -> None:
    with redis.Redis.from_url(empty_redis_url) as client:
        assert client.dbsize() == 0
