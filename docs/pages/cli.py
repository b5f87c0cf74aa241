"""The command line page, from the commands themselves."""

from collections.abc import Iterator
from typing import Any

import typer

from docs.pages.markdown import one_line, table
from lathe.cli import app


def cli_page() -> str:
    """Every command of `lathe` with its arguments and options."""
    sections = "\n".join(_section(words, command) for words, command in commands())
    return f"""# Command line

`lathe` needs no torch, but for `lathe run` and `lathe up`. Commands that talk to a service find it by `LATHE_URL`, and
authenticate with `LATHE_API_KEY`.

{sections}"""


def commands() -> Iterator[tuple[str, Any]]:
    """Each command with the words that call it; groups are walked through."""
    waiting = [("lathe", typer.main.get_command(app))]
    while waiting:
        words, command = waiting.pop(0)
        inner = getattr(command, "commands", {})
        waiting[:0] = [(f"{words} {name}", found) for name, found in inner.items() if not found.hidden]
        if not inner:
            yield words, command


def _section(words: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    rows = [_row(parameter) for parameter in command.params]
    heading = " ".join([words, *(str(parameter.metavar) for parameter in arguments)])
    parts = [
        f"## `{heading}`",
        one_line(command.help),
        *([table(("Name", "Default", "Meaning"), rows)] if rows else []),
    ]
    return "\n\n".join(parts) + "\n"


def _row(parameter: Any) -> tuple[str, str, str]:
    is_argument = parameter.param_type_name == "argument"
    names = str(parameter.metavar) if is_argument else ", ".join(parameter.opts)
    shown = parameter.default not in (None, False, "") and not parameter.required
    default = "required" if parameter.required else f"`{parameter.default}`" if shown else ""
    return f"`{names}`", default, one_line(parameter.help)
