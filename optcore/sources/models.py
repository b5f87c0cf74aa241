"""The model to start from: a folder of this machine, or a Hub repository brought to one."""

from pathlib import Path
from typing import NamedTuple

from optcore.errors import BadCheckpoint
from optcore.references import ModelRef
from optcore.sources.checkpoint_files import ABOUT, INDEX, MATTERS, SINGLE, content_digest, hash_files, require_files
from optcore.sources.checkpoint_files import weights_form as form_of
from optcore.sources.client import HubRepo
from optcore.sources.hub import Pinned, Report, download, pin, verify
from optcore.sources.local import check_checkpoint, require_folder, shards_of


class FetchedModel(NamedTuple):
    """A checkpoint on this machine."""

    path: Path
    revision: str | None
    """Commit of a Hub repository."""
    digest: str
    """SHA-256 over the files that matter: the same for the same content, from the Hub or from a folder."""


def fetch_model(model: ModelRef, cache: Path, report: Report, place: str = "/model") -> FetchedModel:
    """Bring a model here and check it. Hub files come to `cache`, a local folder is used where it lies.

    `place` is where the recipe names it, a JSON Pointer.
    Raises `SourceNotFound`, `SourceGated`, `UnsafeCheckpoint`, `BadCheckpoint`, `HubUnavailable`, `OutOfDisk`.
    """
    if model.id is not None:
        return _from_hub(model.id, model.revision, cache, report, place)
    folder = Path(str(model.path))
    require_folder(folder, f"{place}/path")
    names = check_checkpoint(folder, f"{place}/path")
    return FetchedModel(folder.absolute(), None, content_digest(hash_files(folder, names, report)))


def _from_hub(id: str, revision: str, cache: Path, report: Report, place: str) -> FetchedModel:
    repo = HubRepo(kind="model", id=id, revision=revision, id_field=f"{place}/id", revision_field=f"{place}/revision")
    pinned = pin(repo)
    form = form_of(pinned.files, str(repo), repo.id_field)
    require_files(pinned.files, str(repo), repo.id_field)
    weights = _shards(repo, pinned, cache) if form == INDEX else (SINGLE,)
    beside = [name for name in (*MATTERS, *ABOUT) if name in pinned.files]
    folder = download(repo, pinned, (*beside, form, *(name for name in weights if name != form)), cache, report)
    hashes = hash_files(folder, check_checkpoint(folder, repo.id_field), report)
    verify(folder, pinned, hashes)
    return FetchedModel(folder, pinned.commit, content_digest(hashes))


def _shards(repo: HubRepo, pinned: Pinned, cache: Path) -> tuple[str, ...]:
    folder = download(repo, pinned, [INDEX], cache, lambda *_: None)
    shards = shards_of(folder, repo.id_field)
    missing = [shard for shard in shards if shard not in pinned.files]
    if missing:
        message = f"{repo} lacks {missing[0]}, which its {INDEX} names"
        raise BadCheckpoint(message, remedy="name a complete revision", field=repo.id_field)
    return shards
