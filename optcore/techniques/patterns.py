"""Names of modules as a recipe gives them: exact, or a regular expression after `re:`."""

import re
from typing import Annotated

from pydantic import AfterValidator, StringConstraints


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern.removeprefix("re:"))
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return pattern


Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_compiles)]
