"""The migrations go up, down and up again, and end where the models are."""

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import NullPool, create_engine, inspect, text

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


def test_another_database_is_refused() -> None:
    with pytest.raises(ValueError, match="must start with postgresql://"):
        sqlalchemy_url("sqlite:///x.db")
