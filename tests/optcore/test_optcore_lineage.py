"""The models that an artifact was made from, and what those were made from."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures.artifacts import change_manifest, write_manifest

from optcore.lineage import MAX_ANCESTORS, MAX_GENERATIONS, MAX_WORD_characters, lineage_of
from optcore.manifest import MAX_MANIFEST_bytes, Parent, read_manifest
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
        last, generations, level = level[0], generations + 1, level[0].parents
    assert generations == MAX_GENERATIONS
    assert last.parents_left_out
    assert not only.parents_left_out


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


@pytest.mark.parametrize(
    "lineage",
    [
        [parent(str(number)) for number in range(MAX_ANCESTORS + 1)],
        [parent("wide", *(parent(str(number)) for number in range(MAX_ANCESTORS)))],
        [parent("n" * (MAX_WORD_characters + 1))],
        [parent("deep", parent("deeper", parent("n" * 8_000_000)))],
    ],
)
def test_a_lineage_that_is_too_much_is_left_out(lineage: list[Parent], source: Path) -> None:
    """It would not fit a manifest of ours, and a job would fail at its end."""
    write_manifest(source, lineage=[each.model_dump() for each in lineage])
    (only,) = lineage_of(recipe(source), {}, fetched(source))
    assert (only.artifact, only.parents) == (read_manifest(source).digest, ())
    assert only.parents_left_out


def test_the_longest_lineage_that_is_taken_on_is_a_small_part_of_a_manifest(source: Path) -> None:
    longest = dict.fromkeys(("role", "name", "revision", "sha256", "artifact"), "\x01" * MAX_WORD_characters)
    write_manifest(source, lineage=[longest] * MAX_ANCESTORS)
    (only,) = lineage_of(recipe(source), {}, fetched(source))
    assert len(only.parents) == MAX_ANCESTORS
    assert len(only.model_dump_json(indent=2)) < MAX_MANIFEST_bytes // 7
