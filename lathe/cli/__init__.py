"""The command line `lathe`: run the engine here, or talk to a service.

A command exits with 0 only when what was asked for succeeded; 1 is a failure that was explained, 2 a wrong command
line, or for `verify` a folder that is no artifact.
"""

import typer

from lathe.cli import artifact, catalog, credential, engine, jobs, key, up, verbs, webhook
from lathe.cli.group import Commands

app = typer.Typer(
    cls=Commands,
    help="Optimization-as-a-service for language models: a smaller, faster checkpoint and a measured report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.command(rich_help_panel="On this machine")(engine.run)
app.command(rich_help_panel="On this machine")(engine.validate)
app.command(rich_help_panel="On this machine")(engine.schema)
app.command(rich_help_panel="On this machine")(artifact.verify)
app.command(rich_help_panel="On this machine")(artifact.sign)
app.command(rich_help_panel="On this machine")(up.up)
for command in (jobs.submit, jobs.ls, jobs.show, jobs.events, jobs.logs, jobs.wait, jobs.download, jobs.recipe):
    app.command(rich_help_panel="With a service")(command)
for command in (verbs.cancel, verbs.pause, verbs.resume, verbs.retry, verbs.publish, verbs.delete):
    app.command(rich_help_panel="With a service")(command)
app.command(rich_help_panel="With a service")(catalog.techniques)
app.command(rich_help_panel="With a service")(catalog.formats)
app.add_typer(webhook.app, name="webhook", rich_help_panel="With a service")
app.add_typer(credential.app, name="credential", rich_help_panel="With a service")
app.add_typer(key.app, name="key", rich_help_panel="With a service")

__all__ = ["app"]
