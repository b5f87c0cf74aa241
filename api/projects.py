"""`python -m api.projects`: list projects, and set their limits."""

import argparse
import sys
from collections.abc import Sequence

from api.settings import Settings
from api.store import projects
from api.store.session import Sessions, make_engine, make_sessions


def main(arguments: Sequence[str] | None = None) -> int:
    """One line a project on standard output; or the limits of one, changed."""
    wanted = _parser().parse_args(arguments)
    engine = make_engine(Settings().database_url, pool_size=1)
    try:
        sessions = make_sessions(engine)
        return _list(sessions) if wanted.command == "list" else _limit(sessions, wanted)
    finally:
        engine.dispose()


def _list(sessions: Sessions) -> int:
    with sessions() as session:
        for row in projects.everyone(session):
            used = projects.usage(session, row.id)
            limits = " ".join(f"{name}={getattr(row, name)}" for name in projects.LIMITS)
            sys.stdout.write(
                f"{row.id} {row.name} {limits} unfinished={used.unfinished} "
                f"storage_bytes={used.storage_bytes} gpu_seconds={used.gpu_seconds:.0f}\n"
            )
    return 0


def _limit(sessions: Sessions, wanted: argparse.Namespace) -> int:
    limits = {name: getattr(wanted, name) for name in projects.LIMITS if getattr(wanted, name) is not None}
    with sessions.begin() as session:
        known = projects.limit(session, wanted.name, **{name: value or None for name, value in limits.items()})
    if not known:
        sys.stderr.write(f"no project is named {wanted.name}\n")
    return 0 if known else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m api.projects", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every project, its limits and what it uses")
    limit = commands.add_parser("limit", help="set limits; 0 takes one away")
    limit.add_argument("name")
    for name in projects.LIMITS:
        limit.add_argument(f"--{name.replace('_', '-')}", type=int)
    return parser


if __name__ == "__main__":
    sys.exit(main())
