"""How a command ends when something goes wrong: what, where in the recipe, what to do; and the exit code."""

from typing import Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from lathe.cli.output import errors, printable_lines
from lathe.errors import JobFailed, LatheError, WaitTimeout
from lathe.local.errors import LocalServerError
from optcore.errors import Failure, OptError

FAILED, TIMED_OUT, INTERRUPTED = 1, 3, 130
"""Exit codes beside 0 and 2, which a wrong command line has."""


class Commands(TyperGroup):
    """Turns the errors that we explain ourselves into text; any other is a bug, and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except JobFailed as error:
            explain(error.failure)
        except (LatheError, OptError) as error:
            _say(error.message, error.field, error.remedy)
            if isinstance(error, WaitTimeout):
                raise typer.Exit(TIMED_OUT) from error
        except LocalServerError as error:
            _say(error.message, "", error.remedy)
        except KeyboardInterrupt as interrupt:
            errors.print("interrupted")
            raise typer.Exit(INTERRUPTED) from interrupt
        raise typer.Exit(FAILED)


def explain(failure: Failure) -> None:
    """Write a typed failure to standard error."""
    _say(failure.message, failure.field, failure.remedy, stage=failure.stage)


def _say(message: str, field: str, remedy: str, *, stage: str = "") -> None:
    rows = [("error: ", message), ("stage: ", stage), ("field: ", field), ("remedy: ", remedy)]
    for label, value in rows:
        if value:
            heading = Text(label, "bold red" if label == "error: " else "bold")
            errors.print(heading + printable_lines(value), soft_wrap=True)
