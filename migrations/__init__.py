"""The history of the schema, linear; `upgrade` brings a database to the newest."""

from pathlib import Path

from alembic import command
from alembic.config import Config

LOCK_seconds = 30.0
"""A migration waits no longer for those who use a table, since all others wait behind it; then it changes nothing."""


def upgrade(database_url: str, revision: str = "head") -> None:
    """Bring the database to a revision. Safe to call from several processes at once."""
    command.upgrade(config(database_url), revision)


def config(database_url: str) -> Config:
    """Alembic's configuration for a database, without a file."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent))
    made.attributes["database_url"] = database_url
    return made
