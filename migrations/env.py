"""Alembic's entry: connects, takes a lock so that two upgrades do not meet, runs the revisions in one transaction."""

import os

from alembic import context
from sqlalchemy import NullPool, create_engine, text

from api.store.models import Row
from api.store.session import sqlalchemy_url
from migrations import LOCK_seconds

LOCK = 0x1A7E
"""Key of the advisory lock; any number that nothing else here uses."""


def run() -> None:
    """Migrate the database of the configuration, else of the environment."""
    database_url = context.config.attributes.get("database_url") or os.environ["LATHE_DATABASE_URL"]
    engine = create_engine(sqlalchemy_url(database_url), poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        connection.execute(text("SELECT set_config('lock_timeout', :time, true)"), {"time": f"{LOCK_seconds}s"})
        context.configure(connection=connection, target_metadata=Row.metadata, compare_type=True)
        context.run_migrations()


run()
