"""`python -m api.keys`: make and revoke API keys."""

import argparse
import re
import sys
from collections.abc import Sequence

from api.settings import Settings
from api.store import keys
from api.store.session import Sessions, make_engine, make_sessions


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a new key, once; or revoke one by its id."""
    wanted = _parser().parse_args(arguments)
    settings = Settings()
    engine = make_engine(settings.database_url, pool_size=1)
    try:
        sessions = make_sessions(engine)
        return _create(sessions, wanted.owner) if wanted.command == "create" else _revoke(sessions, wanted.key_id)
    finally:
        engine.dispose()


def _create(sessions: Sessions, owner_id: str) -> int:
    with sessions.begin() as session:
        key_id, key = keys.create(session, owner_id)
    sys.stderr.write(f"{key_id}: keep the key, it is not shown again\n")
    sys.stdout.write(f"{key}\n")
    return 0


def _revoke(sessions: Sessions, key_id: str) -> int:
    with sessions.begin() as session:
        known = keys.revoke(session, key_id)
    if not known:
        sys.stderr.write(f"no key in use has the id {key_id}\n")
    return 0 if known else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m api.keys", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="print a new key on standard output")
    create.add_argument("--owner", required=True, type=_owner, help="whom the key speaks for")
    commands.add_parser("revoke", help="refuse a key from now on").add_argument("key_id")
    return parser


def _owner(name: str) -> str:
    if not re.fullmatch(r"[\w.@-]{1,100}", name):
        raise argparse.ArgumentTypeError("an owner is up to 100 letters, digits and . _ - @")
    return name


if __name__ == "__main__":
    sys.exit(main())
