"""`python -m api.hosts`: which machines lost job after job and get no more, and trusting one again."""

import argparse
import sys
from collections.abc import Sequence

from api.settings import Settings
from api.store import hosts
from api.store.session import Sessions, make_engine, make_sessions


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the hosts in quarantine; or give one work again."""
    wanted = _parser().parse_args(arguments)
    engine = make_engine(Settings().database_url, pool_size=1)
    try:
        sessions = make_sessions(engine)
        return _trust(sessions, wanted.name) if wanted.command == "trust" else _list(sessions)
    finally:
        engine.dispose()


def _list(sessions: Sessions) -> int:
    with sessions() as session:
        for host in hosts.quarantined(session):
            sys.stdout.write(f"{host.name}  in quarantine since {host.quarantined_at:%Y-%m-%d %H:%M %Z}\n")
    return 0


def _trust(sessions: Sessions, name: str) -> int:
    with sessions.begin() as session:
        trusted = hosts.trust(session, name)
    if trusted:
        sys.stdout.write(f"{name} is trusted again\n")
    else:
        sys.stderr.write(f"no host in quarantine has the name {name}\n")
    return 0 if trusted else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m api.hosts", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="hosts in quarantine; `attempts` in the database says what they lost")
    commands.add_parser("trust", help="give a host work again").add_argument("name")
    return parser


if __name__ == "__main__":
    sys.exit(main())
