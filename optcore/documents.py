"""Documents beside a checkpoint's weights: what form these have, how the model is to be run."""

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from optcore.errors import BadCheckpoint
from optcore.frozen import Frozen

Document = TypeVar("Document", bound=Frozen)


def read_document(path: Path, kind: type[Document], field: str = "/model") -> Document | None:
    """None where there is none. Raises `BadCheckpoint`, about that `field` of the recipe, for a file that is no such
    document."""
    try:
        return kind.model_validate_json(path.read_bytes()) if path.exists() else None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BadCheckpoint(
            f"{path.name} is not what this program writes beside weights: {place}: {first['msg']}",
            remedy="remove the file, or download the folder again",
            field=field,
        ) from error
