"""Where a model comes from: its parents by digest, and theirs where they are artifacts of ours."""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from optcore.errors import OptError
from optcore.manifest import Parent, read_manifest
from optcore.recipe import Recipe
from optcore.references import ModelRef
from optcore.sources.checkpoint_files import content_digest
from optcore.sources.local import check_checkpoint
from optcore.techniques import Technique

MAX_GENERATIONS = 8
"""Of parents in a manifest. A chain of jobs, each on the last one's result, would grow it without end."""
MAX_ANCESTORS = 256
"""Of one parent, in all: models that were merged with their relatives are named once for every way to them."""
MAX_WORD_characters = 256
"""Of a name, a commit or a digest in a manifest that somebody else may have written."""


def lineage_of(recipe: Recipe, applied: Mapping[str, Technique], fetched: Mapping[str, Any]) -> tuple[Parent, ...]:
    """The models that a run read: its source, then those that the applied techniques name.

    `applied` is by place in the recipe, a JSON Pointer; `fetched` what the fetch left.
    """
    source = _parent("source", recipe.model, fetched["source"], fetched["source_digest"], fetched["model_revision"])
    return (source, *_beside(applied, {**fetched["models"], **fetched["drafts"]}))


def _beside(applied: Mapping[str, Technique], fetched: Mapping[str, Any]) -> Iterator[Parent]:
    for place, technique in applied.items():
        for name, ref in {**technique.models, **technique.drafts}.items():
            if name.startswith("fallback/"):  # of another attempt, which is among the applied if it was made
                continue
            found = fetched[f"{place}/{name}"]
            role = "merged" if name.startswith("others/") else name
            yield _parent(role, ref, found["path"], found["digest"], found["revision"])


def _parent(role: str, ref: ModelRef, path: str, digest: str, revision: str | None) -> Parent:
    name = ref.id or Path(path).name
    own = _own_manifest(Path(path), digest)
    return Parent(role=role, name=name, revision=revision or "", sha256=digest, **own)


def _own_manifest(folder: Path, digest: str) -> dict[str, Any]:
    """What the manifest in a parent's folder says of it, unless the checkpoint there is not the one it lists."""
    try:
        manifest = read_manifest(folder)
        names = set(check_checkpoint(folder, ""))
    except (OptError, OSError):  # most models are no artifacts of ours; a draft is no checkpoint of the usual kind
        return {}
    listed = {file.path: file.sha256 for file in manifest.files if file.path in names}
    if content_digest(listed) != digest or len(manifest.digest) > MAX_WORD_characters:
        return {}
    parents = _bounded(manifest.lineage, MAX_GENERATIONS - 1)
    if _is_too_much(parents):  # a job must not fail at its end for what its source says of itself
        return {"artifact": manifest.digest, "parents_left_out": True}
    return {"artifact": manifest.digest, "parents": parents}


def _bounded(parents: tuple[Parent, ...], generations: int) -> tuple[Parent, ...]:
    return tuple(_cut(each, generations - 1) for each in parents)


def _cut(parent: Parent, generations: int) -> Parent:
    if not generations:
        is_cut = parent.parents_left_out or bool(parent.parents)
        return parent.model_copy(update={"parents": (), "parents_left_out": is_cut})
    return parent.model_copy(update={"parents": _bounded(parent.parents, generations)})


def _is_too_much(parents: tuple[Parent, ...]) -> bool:
    rows = list(islice(_all(parents), MAX_ANCESTORS + 1))
    words = (word for row in rows for word in (row.role, row.name, row.revision, row.sha256, row.artifact))
    return len(rows) > MAX_ANCESTORS or any(len(word) > MAX_WORD_characters for word in words)


def _all(parents: tuple[Parent, ...]) -> Iterator[Parent]:
    for each in parents:
        yield each
        yield from _all(each.parents)
