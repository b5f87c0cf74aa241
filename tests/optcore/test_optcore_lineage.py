"""The models that an artifact was made from, and what those were made from."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures.artifacts import change_manifest, write_manifest

from optcore.lineage import MAX_GENERATIONS, lineage_of
from optcore.manifest import Parent, read_manifest
from optcore.recipe import Recipe, recipe_from
from optcore.references import ModelRef
from optcore.sources.models import fetch_model


@pytest.fixture
def source(stdlib_model: Path, tmp_path: Path) -> Path:
    """A model that is a result of an earlier run."""
    return shutil.copytree(stdlib_model, tmp_path / "earlier")


def fetched(source: Path, **beside: Any) -> dict[str, Any]:
    found = fetch_model(ModelRef(path=str(source)), source.parent, lambda *_: None)
    own = {"source": str(found.path), "source_digest": found.digest, "model_revision": None}
    return {**own, "models": {}, "drafts": {}, **beside}


def recipe(source: Path, *chain: dict[str, Any]) -> Recipe:
    entries = chain or ({"technique": "ptq", "scheme": "int4"},)
    return recipe_from({"model": {"path": str(source)}, "chain": list(entries)})


def parent(name: str, *parents: Parent) -> Parent:
    return Parent(role="source", name=name, sha256="0" * 64, parents=parents)


def test_a_plain_source_is_the_only_parent(source: Path) -> None:
    found = fetched(source)
    (only,) = lineage_of(recipe(source), {}, found)
    assert only == Parent(role="source", name="earlier", sha256=found["source_digest"])


def test_the_lineage_of_an_artifact_of_ours_is_taken_on(source: Path) -> None:
    write_manifest(source, lineage=[parent("grandparent").model_dump()])
    (only,) = lineage_of(recipe(source), {}, fetched(source))
    assert (only.artifact, only.parents) == (read_manifest(source).digest, (parent("grandparent"),))


def test_a_manifest_of_other_weights_says_nothing(source: Path) -> None:
    write_manifest(source, lineage=[parent("grandparent").model_dump()])
    changed = "0" * 64
    change_manifest(source, lambda manifest: [file.update(sha256=changed) for file in manifest["files"]])
    (only,) = lineage_of(recipe(source), {}, fetched(source))
    assert (only.artifact, only.parents) == ("", ())


def test_a_chain_of_runs_does_not_grow_without_end(source: Path) -> None:
    tower = parent("first")
    for number in range(20):
        tower = parent(str(number), tower)
    write_manifest(source, lineage=[tower.model_dump()])
    (only,) = lineage_of(recipe(source), {}, fetched(source))
    generations = 0
    level: tuple[Parent, ...] = (only,)
    while level:
        generations, level = generations + 1, level[0].parents
    assert generations == MAX_GENERATIONS


def test_every_model_that_was_read_is_named_by_its_part(source: Path) -> None:
    commit = "c" * 40
    merge = {"technique": "merge", "method": "linear", "others": [{"model": {"id": "a/b", "revision": commit}}]}
    distill = {"technique": "distill", "teacher": {"id": "a/teacher", "revision": commit}}
    made = recipe(source, merge, distill)
    beside = {"path": str(source), "digest": "1" * 64, "revision": commit}
    models = {"/chain/0/others/0/model": beside, "/chain/1/teacher": beside, "/chain/1/fallback/0/teacher": beside}
    applied = {f"/chain/{number}": technique for number, technique in enumerate(made.chain)}
    found = lineage_of(made, applied, fetched(source, models=models))
    assert [(each.role, each.name, each.revision) for each in found] == [
        ("source", "earlier", ""),
        ("merged", "a/b", commit),
        ("teacher", "a/teacher", commit),
    ]
