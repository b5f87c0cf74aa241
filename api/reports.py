"""The report of a finished job, read from the artifact store."""

from pydantic import ValidationError

from api.files import ArtifactStore, name_of
from api.store.models import Artifact, Job
from optcore.report import Report

FILE = "report.json"
MAX_bytes = 4_000_000
"""A report is tens of kilobytes; what an engine wrote is not trusted to be."""


def read(store: ArtifactStore, job: Job, file: Artifact | None) -> Report | None:
    """The measured before and after by the row of its file; None where none can be read. Raises `StoreAway`."""
    name = name_of(job.id, job.epoch, FILE)
    if file is None or file.bytes > MAX_bytes or store.size_bytes(name) != file.bytes:
        return None
    try:
        return Report.model_validate_json(b"".join(store.read(name, 0, file.bytes)))
    except ValidationError:
        return None
