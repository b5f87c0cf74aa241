"""The migrations go up, down and up again, and end where the models are."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from fixtures.waiting import until
from sqlalchemy import NullPool, create_engine, inspect, text
from sqlalchemy.exc import OperationalError

import migrations
from api.store.models import Row
from api.store.session import sqlalchemy_url
from migrations import config, upgrade

pytestmark = pytest.mark.integration
_CHECKS = "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'c' ORDER BY conname"


def test_up_down_up_ends_equal_to_the_models(empty_database_url: str) -> None:
    upgrade(empty_database_url)
    command.downgrade(config(empty_database_url), "base")
    engine = create_engine(sqlalchemy_url(empty_database_url), poolclass=NullPool)
    assert inspect(engine).get_table_names() == ["alembic_version"]
    upgrade(empty_database_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Row.metadata) == []


def test_the_check_constraints_are_those_of_the_models(database_url: str, empty_database_url: str) -> None:
    """Alembic does not compare them."""
    migrated, made = (
        create_engine(sqlalchemy_url(url), poolclass=NullPool) for url in (database_url, empty_database_url)
    )
    Row.metadata.create_all(made)
    with migrated.connect() as left, made.connect() as right:
        checks = left.execute(text(_CHECKS)).all()
        assert checks == right.execute(text(_CHECKS)).all()
    assert len(checks) >= 7


def test_jobs_can_be_read_while_their_indexes_are_made(empty_database_url: str) -> None:
    upgrade(empty_database_url, "0003")
    engine = create_engine(sqlalchemy_url(empty_database_url), poolclass=NullPool)

    def locks() -> set[tuple[str, bool]]:
        with engine.connect() as other:
            held = "SELECT mode, granted FROM pg_locks WHERE relation = 'jobs'::regclass AND mode <> 'AccessShareLock'"
            return {(row[0], row[1]) for row in other.execute(text(held))}

    with ThreadPoolExecutor(1) as pool, engine.connect() as reader:
        reader.execute(text("SELECT count(*) FROM jobs"))
        migration = pool.submit(upgrade, empty_database_url)
        until(lambda: ("AccessExclusiveLock", False) in locks(), "the migration to wait for the reader")
        assert ("ShareLock", True) in locks(), "the indexes are made"
        reader.rollback()
        migration.result()


def test_a_migration_does_not_wait_for_ever(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrations, "LOCK_seconds", 0.1)
    upgrade(empty_database_url, "0003")
    engine = create_engine(sqlalchemy_url(empty_database_url), poolclass=NullPool)
    with engine.connect() as reader:
        reader.execute(text("SELECT count(*) FROM jobs"))
        with pytest.raises(OperationalError, match="lock timeout"):
            upgrade(empty_database_url)
    assert "tallies" not in inspect(engine).get_table_names()


def test_another_database_is_refused() -> None:
    with pytest.raises(ValueError, match="must start with postgresql://"):
        sqlalchemy_url("sqlite:///x.db")
