"""Commands about the project that the key speaks for."""

from collections.abc import Callable
from itertools import islice
from typing import Annotated

import typer

from lathe.cli.output import print_each, print_json, print_table
from lathe.cli.session import AsJson, connect
from optcore.report.numbers import format_bytes, format_seconds


def project(as_json: AsJson = False) -> None:
    """Show the project, its limits and what it uses of them."""
    with connect() as client:
        found = client.project()
    if as_json:
        print_json(found)
        return
    rows = (
        ("unfinished jobs", found.unfinished, _limit(found.max_unfinished, str)),
        ("running jobs", "", _limit(found.max_running, str)),
        ("storage", format_bytes(found.storage_bytes), _limit(found.max_storage_bytes, format_bytes)),
        ("GPU time in 30 days", format_seconds(found.gpu_seconds), _limit(found.max_gpu_seconds, format_seconds)),
    )
    print_table((f"{found.id} {found.name}", "used", "of"), rows)


def audit(
    limit: Annotated[int, typer.Option(min=1, help="How many entries.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Print who did what in the project, newest first."""
    with connect() as client:
        found = list(islice(client.audit(), limit))
    if as_json:
        print_each(found)
    else:
        rows = [(f"{item.at:%Y-%m-%d %H:%M:%S}", item.actor, item.action, item.target, item.address) for item in found]
        print_table(("at", "who", "what", "on", "from"), rows)


def _limit(value: int | None, written: Callable[[int], str]) -> str:
    return "no limit" if value is None else written(value)
