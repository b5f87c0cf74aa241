"""`python -m api.keys`: make and revoke API keys, with the service's own settings and no key."""

import argparse
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from api.settings import Settings
from api.store import audit, keys, projects
from api.store.session import Sessions, make_engine, make_sessions
from lathe.models import SCOPES, Scope


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a new key, once; or revoke one by its id."""
    wanted = _parser().parse_args(arguments)
    settings = Settings()
    engine = make_engine(settings.database_url, pool_size=1)
    try:
        sessions = make_sessions(engine)
        if wanted.command == "revoke":
            return _revoke(sessions, wanted.key_id)
        return _create(sessions, wanted.project, wanted.name, wanted.scope or SCOPES, wanted.days)
    finally:
        engine.dispose()


def _create(sessions: Sessions, project: str, name: str, scopes: Sequence[Scope], days: int | None) -> int:
    expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
    with sessions.begin() as session:
        owner = projects.ensure(session, project)
        row, key = keys.create(session, owner.id, name=name, scopes=scopes, expires_at=expires_at)
        audit.add(session, owner.id, audit.OPERATOR, "key.create", row.id)
    sys.stderr.write(f"{row.id}: keep the key, it is not shown again\n")
    sys.stdout.write(f"{key}\n")
    return 0


def _revoke(sessions: Sessions, key_id: str) -> int:
    with sessions.begin() as session:
        project_id = keys.revoke(session, None, key_id)
        if project_id is not None:
            audit.add(session, project_id, audit.OPERATOR, "key.revoke", key_id)
    if project_id is None:
        sys.stderr.write(f"no key in use has the id {key_id}\n")
    return 0 if project_id is not None else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m api.keys", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="print a new key on standard output")
    create.add_argument("--project", required=True, type=_name, help="whom the key speaks for; made when it is new")
    create.add_argument("--name", default="", help="what the key is for")
    create.add_argument("--scope", action="append", choices=SCOPES, help="what it allows; repeat it; all by default")
    create.add_argument("--days", type=int, help="days until it expires; it never does by default")
    commands.add_parser("revoke", help="refuse a key from now on").add_argument("key_id")
    return parser


def _name(name: str) -> str:
    if not re.fullmatch(r"[\w.@-]{1,100}", name):
        raise argparse.ArgumentTypeError("a project's name is up to 100 letters, digits and . _ - @")
    return name


if __name__ == "__main__":
    sys.exit(main())
