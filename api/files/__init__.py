"""The artifact store: the files of finished jobs, in a folder or in a bucket of S3.

A file is named `<job_id>/<epoch>/<path>`. What lies below an epoch means nothing until the database says that the job
ended with it, so a write needs no lock, and what a lost attempt left is rubbish by definition.
"""

from api.files.bucket import Bucket
from api.files.folder import Folder
from api.files.objects import name_of
from api.settings import Settings

__all__ = ["ArtifactStore", "Bucket", "Folder", "name_of", "open_store"]

ArtifactStore = Folder | Bucket


def open_store(settings: Settings) -> ArtifactStore:
    """The store that the settings name. Nothing is asked of it yet; its threads do not survive a fork."""
    if not settings.artifact_store:
        return Folder(settings.artifacts_dir)
    return Bucket(settings.artifact_store, allow_http=settings.artifact_store_allow_http)
