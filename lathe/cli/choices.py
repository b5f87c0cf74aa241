"""Options that take a few known words and may be repeated: typer knows no list of literals."""

from collections.abc import Sequence
from typing import Any

import typer


def some_of(words: Sequence[str], help: str) -> Any:
    """An option of a `list[str]`: its help lists the words, the shell completes them, and any other is refused."""

    def check(given: list[str] | None) -> list[str] | None:
        for each in given or ():
            if each not in words:
                raise typer.BadParameter(f"{each!r} is none of {', '.join(words)}")
        return given

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    listed = ", ".join(f"`{word}`" for word in words)
    return typer.Option(help=f"{help}: {listed}. May be repeated.", callback=check, autocompletion=complete)
