"""What a model on the Hub looks like, without its weights: its configuration, and the types and shapes of its tensors.

A few requests of some kilobytes each, by ranges of the files: enough to foresee what a job will take.
"""

import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import SafetensorsParsingError

from optcore.errors import BadCheckpoint
from optcore.references import ModelRef
from optcore.sizes import MOST_tensors
from optcore.sources.checkpoint_files import CONFIG, INDEX, SINGLE, require_files, weights_form
from optcore.sources.client import HubRepo, hub_api, patiently

T = TypeVar("T")
Tensors = dict[str, tuple[tuple[int, ...], str]]

MOST_files = 2000
"""Five times those of the largest published models: one request is made for each."""
MOST_bytes = {CONFIG: 4 << 20, INDEX: 64 << 20}
"""Twenty times those of the largest published models: they are read whole, in the memory of whoever asks."""
PARALLEL = 4
# The client reads a header as if it were well formed.
_DAMAGED = (SafetensorsParsingError, AttributeError, KeyError, TypeError, ValueError)


class Shapes(NamedTuple):
    """A checkpoint's outline."""

    commit: str
    config: dict[str, Any]
    tensors: Tensors
    """Shape, and type in safetensors' words such as `BF16`, by name."""


def remote_shapes(
    model: ModelRef, place: str = "/model", token: str | None = None, patience_seconds: float = inf
) -> Shapes:
    """Ask the Hub for a model's outline. Without a token only for what is open to everybody.

    `place` is where the recipe names the model, a JSON Pointer. No request begins when the patience is over.
    Raises `SourceNotFound`, `SourceGated`, `UnsafeCheckpoint`, `BadCheckpoint`, `HubUnavailable`.
    """
    assert model.id is not None, "a folder's headers are read where it lies"
    fields = {"id_field": f"{place}/id", "revision_field": f"{place}/revision"}
    repo = HubRepo(kind="model", id=model.id, revision=model.revision, **fields)
    api, until = hub_api(token or False), time.monotonic() + patience_seconds
    info = patiently(lambda: api.model_info(repo.id, revision=repo.revision, files_metadata=True), repo, until)
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or ()}
    form = weights_form(sizes, str(repo), repo.id_field)
    require_files(sizes, str(repo), repo.id_field)
    snapshot = _Snapshot(repo, api, str(info.sha), sizes, until)
    config = snapshot.document(CONFIG)
    return Shapes(snapshot.commit, config, snapshot.tensors(snapshot.shards() if form == INDEX else (SINGLE,)))


class _Snapshot(NamedTuple):
    """One commit of a repository, asked for little of it."""

    repo: HubRepo
    api: HfApi
    commit: str
    sizes: dict[str, int]
    """Bytes of its files."""
    until: float

    def document(self, name: str) -> dict[str, Any]:
        """A small JSON file of it."""
        if self.sizes[name] > MOST_bytes[name]:
            raise self._bad(f"has a {name} of {self.sizes[name]} bytes, and {MOST_bytes[name]} are the most")
        with TemporaryDirectory(prefix="lathe-shapes-") as folder:
            path = self._ask(
                lambda: self.api.hf_hub_download(self.repo.id, name, revision=self.commit, local_dir=folder)
            )
            try:
                found = json.loads(Path(path).read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise self._bad(f"has a damaged {name}") from error
        if not isinstance(found, dict):
            raise self._bad(f"has a {name} that is no object")
        return found

    def shards(self) -> tuple[str, ...]:
        """The files that its index names, each once."""
        named = self.document(INDEX).get("weight_map")
        names = tuple(dict.fromkeys(map(str, named.values()))) if isinstance(named, dict) else ()
        if len(names) > MOST_files:
            raise self._bad(f"has more than {MOST_files} files of weights")
        if not names or not all(name in self.sizes for name in names):
            raise self._bad(f"has an {INDEX} that names other files than are there")
        return names

    def tensors(self, names: Iterable[str]) -> Tensors:
        """What the headers of files say."""
        found: Tensors = {}
        with ThreadPoolExecutor(PARALLEL) as pool:
            tasks = [pool.submit(self._header, name) for name in names]
            try:
                for task in as_completed(tasks):
                    found |= task.result()
                    if len(found) > MOST_tensors:
                        raise self._bad(f"has more than {MOST_tensors} tensors")
            finally:
                pool.shutdown(cancel_futures=True)
        return found

    def _header(self, name: str) -> Tensors:
        try:
            header = self._ask(
                lambda: self.api.parse_safetensors_file_metadata(self.repo.id, name, revision=self.commit)
            )
            return {tensor: (_shape(one.shape), str(one.dtype)) for tensor, one in header.tensors.items()}
        except _DAMAGED as error:
            remedy = "name a complete revision whose weights are safetensors"
            raise self._bad("has weights with a damaged header", remedy) from error

    def _ask(self, call: Callable[[], T]) -> T:
        return patiently(call, self.repo, self.until)

    def _bad(self, what: str, remedy: str = "") -> BadCheckpoint:
        return BadCheckpoint(f"{self.repo} {what}", remedy=remedy, field=self.repo.id_field)


def _shape(sizes: list[int]) -> tuple[int, ...]:
    if not all(isinstance(size, int) and 0 <= size < 2**40 for size in sizes):
        raise ValueError(f"no shape: {sizes!r}")
    return tuple(sizes)
