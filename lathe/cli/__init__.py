"""The command line `lathe`: run the engine here, or talk to a service.

Exit codes: 0 when what was asked for succeeded, 1 for a failure that is explained, 2 for a wrong command line (for
`verify` also a folder that is no artifact), 3 when the time to wait was up, 130 after Ctrl-C.
"""

from collections.abc import Callable
from typing import Annotated

import typer

from lathe.cli import (
    account,
    artifact,
    catalog,
    credential,
    engine,
    files,
    foresight,
    history,
    jobs,
    keys,
    up,
    verbs,
    webhook,
)
from lathe.cli.group import Commands
from lathe.cli.output import console
from optcore.version import installed

app = typer.Typer(
    cls=Commands,
    help="Optimization-as-a-service for language models: a smaller, faster checkpoint and a measured report.",
    epilog="Exit codes: 0 success, 1 an explained failure, 2 a wrong command line, 3 waited in vain, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        console.out(f"lathe {installed('lathe')}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    return None


_SERVICE = "About a service"
_COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "On this machine": (engine.run, engine.validate, engine.schema, artifact.verify, artifact.sign, up.up),
    "Jobs of a service": (
        *(jobs.submit, foresight.estimate, jobs.ls, jobs.show, history.events, history.logs, history.metrics),
        *(jobs.wait, verbs.cancel, verbs.pause, verbs.resume, verbs.retry, verbs.publish, verbs.delete),
        *(files.download, files.artifacts, files.report, files.recipe, foresight.compare),
    ),
    _SERVICE: (
        *(catalog.techniques, catalog.formats, catalog.templates, catalog.workers, catalog.health),
        *(account.project, account.audit),
    ),
}
for _panel, _commands in _COMMANDS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(webhook.app, name="webhook", rich_help_panel=_SERVICE)
app.add_typer(credential.app, name="credential", rich_help_panel=_SERVICE)
app.add_typer(keys.app, name="keys", rich_help_panel=_SERVICE)
app.add_typer(keys.app, name="key", hidden=True)  # as it was called before

__all__ = ["app"]
