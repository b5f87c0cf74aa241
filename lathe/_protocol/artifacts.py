"""What is asked about the files of a job."""

from lathe._protocol.call import Call, Params, nothing, reader, segment
from lathe.models import Artifact, Page

_artifacts = reader(Page[Artifact])


def list_artifacts(job_id: str, params: Params) -> Call[Page[Artifact]]:
    return Call("GET", f"/v1/jobs/{segment(job_id)}/artifacts", _artifacts, params)


def get_artifact(job_id: str, path: str, offset_bytes: int) -> Call[None]:
    """The bytes of one file from an offset on; read from the stream, not from `parse`."""
    # Compressed transfer would make the offsets and the sizes those of other bytes.
    headers = {"Accept-Encoding": "identity"}
    if offset_bytes:
        headers["Range"] = f"bytes={offset_bytes}-"
    where = "/".join(segment(part) for part in path.split("/"))
    return Call("GET", f"/v1/jobs/{segment(job_id)}/artifacts/{where}", nothing, headers=headers)
