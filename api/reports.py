"""The report of a finished job, read from the artifact store."""

from typing import Protocol

from pydantic import ValidationError

from api.files import ArtifactStore, name_of
from optcore.report import Report

FILE = "report.json"
MAX_bytes = 4_000_000
"""A report is tens of kilobytes; what an engine wrote is not trusted to be."""


class Size(Protocol):
    """What is registered of a file, as a row or on the wire."""

    @property
    def bytes(self) -> int:
        """Its size."""


def read(store: ArtifactStore, job_id: str, epoch: int, file: Size | None) -> Report | None:
    """The measured before and after by what is registered of its file; None where none can be read.

    Raises `StoreAway`.
    """
    name = name_of(job_id, epoch, FILE)
    if file is None or file.bytes > MAX_bytes or store.size_bytes(name) != file.bytes:
        return None
    try:
        return Report.model_validate_json(b"".join(store.read(name, 0, file.bytes)))
    except ValidationError:
        return None
