"""What a model on the Hub looks like, without its weights: its configuration, and the types and shapes of its tensors.

A few requests of some kilobytes each, by ranges of the files: enough to foresee what a job will take.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

from optcore.errors import BadCheckpoint
from optcore.references import ModelRef
from optcore.sources.checkpoint_files import CONFIG, INDEX, require_files, weights_form
from optcore.sources.client import HubRepo, hub_api, patiently

MOST_files = 2000
"""Five times those of the largest published models: one request is made for each."""
# The client reads a header as if it were well formed.
_DAMAGED = (NotASafetensorsRepoError, SafetensorsParsingError, AttributeError, KeyError, TypeError, ValueError)


class Shapes(NamedTuple):
    """A checkpoint's outline."""

    commit: str
    config: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], str]]
    """Shape, and type in safetensors' words such as `BF16`, by name."""


def remote_shapes(model: ModelRef, place: str = "/model", token: str | None = None) -> Shapes:
    """Ask the Hub for a model's outline. Without a token only for what is open to everybody.

    `place` is where the recipe names the model, a JSON Pointer.
    Raises `SourceNotFound`, `SourceGated`, `UnsafeCheckpoint`, `BadCheckpoint`, `HubUnavailable`.
    """
    assert model.id is not None, "a folder's headers are read where it lies"
    fields = {"id_field": f"{place}/id", "revision_field": f"{place}/revision"}
    repo = HubRepo(kind="model", id=model.id, revision=model.revision, **fields)
    api = hub_api(token or False)
    info = patiently(lambda: api.model_info(repo.id, revision=repo.revision), repo)
    files = [sibling.rfilename for sibling in info.siblings or ()]
    form = weights_form(files, str(repo), repo.id_field)
    require_files(files, str(repo), repo.id_field)
    commit = str(info.sha)
    if form == INDEX and sum(name.endswith(".safetensors") for name in files) > MOST_files:
        raise BadCheckpoint(f"{repo} has more than {MOST_files} files of weights", field=repo.id_field)
    try:
        found = patiently(lambda: api.get_safetensors_metadata(repo.id, revision=commit), repo)
        headers = [facts.tensors for facts in found.files_metadata.values()]
        tensors = {name: (_shape(one.shape), str(one.dtype)) for header in headers for name, one in header.items()}
    except _DAMAGED as error:
        remedy = "name a complete revision whose weights are safetensors"
        raise BadCheckpoint(f"{repo} has weights with a damaged header", remedy=remedy, field=repo.id_field) from error
    return Shapes(commit, _config(repo, commit, token), tensors)


def _shape(sizes: list[int]) -> tuple[int, ...]:
    if not all(isinstance(size, int) and 0 <= size < 2**40 for size in sizes):
        raise ValueError(f"no shape: {sizes!r}")
    return tuple(sizes)


def _config(repo: HubRepo, commit: str, token: str | None) -> dict[str, Any]:
    api = hub_api(token or False)
    with TemporaryDirectory(prefix="lathe-shapes-") as folder:
        path = patiently(lambda: api.hf_hub_download(repo.id, CONFIG, revision=commit, local_dir=folder), repo)
        try:
            config = json.loads(Path(path).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise BadCheckpoint(f"{repo} has a damaged {CONFIG}", field=repo.id_field) from error
    if not isinstance(config, dict):
        raise BadCheckpoint(f"{repo} has a {CONFIG} that is no object", field=repo.id_field)
    return config
