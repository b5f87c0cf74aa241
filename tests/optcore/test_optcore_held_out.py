"""What is measured is not trained on, whatever a recipe calls the text."""

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.exporting import run_of
from fixtures.training import prepared

from optcore.calibration.text import Texts
from optcore.engine import fetch
from optcore.errors import RecipeError
from optcore.held_out import check_held_out
from optcore.measures import check_measures
from optcore.recipe import Recipe, recipe_from
from optcore.references import Calibration
from optcore.report import Task
from optcore.techniques import Qat
from optcore.training.windows import Windows

PTQ: dict[str, Any] = {"technique": "ptq", "scheme": "int8"}
QAD: dict[str, Any] = {"technique": "qad"}


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Text whose every piece says where it comes from."""
    file = tmp_path / "words.jsonl"
    rows = [{"body": " ".join(f"w{n}x{i}" for i in range(300)), "title": f"number {n}"} for n in range(30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _link(file: Path) -> Path:
    link = file.with_name("link.jsonl")
    link.symlink_to(file)
    return link


def _copy(file: Path) -> Path:
    copy = file.with_name("copy.jsonl")
    copy.write_bytes(file.read_bytes())
    return copy


def _dotted(file: Path) -> Path:
    return Path(f"{file.parent}/../{file.parent.name}/{file.name}")


class TestText:
    @pytest.mark.parametrize("named", [Path, _link, _copy, _dotted], ids=["itself", "link", "copy", "dotted"])
    def test_a_file_of_its_own_that_is_evaluation_s_too(
        self, named: Any, words: Path, stdlib_model: Path, tmp_path: Path
    ) -> None:
        """The path is the only thing that names it: `dataset` is what calibration has by default."""
        calibration = Calibration(path=str(words), column="body", samples=2, sequence_length=64)
        own = named(words)
        data = {"path": str(own)}
        technique = Qat.model_validate({"steps": 500, "batch": 2, "sequence_length": 32, "data": data})
        run = run_of(stdlib_model, stdlib_model, tmp_path / "out", calibration=calibration)
        prepared(run, technique, tmp_path / "windows", (own,), calibration)
        windows = Windows(tmp_path / "windows")
        trained = windows.read(range(windows.facts.windows)).tokens_BT
        held_out = Texts(stdlib_model, calibration, (words,)).evaluation_windows(1000, 16, 512)
        seen = {tuple(row[i : i + 16]) for row in trained.tolist() for i in range(len(row) - 15)}
        assert len(held_out) > 100
        assert not seen & {tuple(row) for row in held_out.tolist()}

    def test_another_file_is_used_whole(self, words: Path, stdlib_model: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.jsonl"
        other.write_text(words.read_text().replace("w0x0", "w0x1"))
        calibration = Calibration(path=str(words), column="body", samples=2, sequence_length=64)
        technique = Qat.model_validate(
            {"steps": 5000, "sequence_length": 32, "data": {"path": str(other), "column": "body"}}
        )
        run = run_of(stdlib_model, stdlib_model, tmp_path / "out", calibration=calibration)
        facts = prepared(run, technique, tmp_path / "windows", (other,), calibration)
        documents = Texts(stdlib_model, calibration, (other,)).training_documents(whole=True)
        assert facts.windows == sum(map(len, documents)) // 32


def _recipe(*chain: dict[str, Any], **more: Any) -> Recipe:
    document = {"model": {"path": "model"}, "calibration": {"path": "c.jsonl", "column": "body"}, "chain": list(chain)}
    return recipe_from({**document, **more})


def _check(
    recipe: Recipe, own: list[Path], texts: dict[str, list[Path]] | None = None, task: Task = "text-generation"
) -> None:
    found = {place: {"files": list(map(str, files))} for place, files in (texts or {}).items()}
    check_held_out(recipe, task, {"data_files": list(map(str, own)), "texts": found})


class TestOtherReadings:
    """What cannot be left out is refused, by the place in the recipe that asks for it."""

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            ({"kind": "chat", "path": "c.jsonl"}, "conversations are not read"),
            ({"path": "c.jsonl", "column": "title"}, "another column"),
            ({"kind": "chat"}, "conversations are not read"),
        ],
    )
    def test_other_parts_of_the_same_file(self, data: dict[str, str], said: str, words: Path) -> None:
        recipe, texts = _recipe(PTQ, QAD | {"data": data}), {"/chain/1/data": [_link(words)]}
        with pytest.raises(RecipeError, match=said) as caught:
            _check(recipe, [words], texts if "path" in data else {})
        assert caught.value.field == "/chain/1/data"
        _check(recipe.model_copy(update={"evaluate": ()}), [words], texts)  # nothing is measured on it

    def test_files_in_another_order(self, words: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.jsonl"
        other.write_text("")
        recipe = _recipe(PTQ, QAD | {"data": {"path": "d.jsonl"}})
        _check(recipe, [words], {"/chain/1/data": [words, other]})
        _check(recipe, [words], {"/chain/1/data": [other]})
        with pytest.raises(RecipeError, match="not read in the order"):
            _check(recipe, [words], {"/chain/1/data": [other, words]})

    def test_a_fallback_that_trains(self, words: Path) -> None:
        gate = {"metric": "kl", "max": 1, "on_fail": "fallback"}
        fallback = [{"scheme": "fp8"}, QAD | {"data": {"kind": "chat", "path": "d.jsonl"}}]
        recipe = _recipe(PTQ | {"gate": gate, "fallback": fallback}, evaluate=[])
        with pytest.raises(RecipeError) as caught:
            _check(recipe, [words], {"/chain/0/fallback/1/data": [_copy(words)]})
        assert caught.value.field == "/chain/0/fallback/1/data"


def test_a_run_looks_once_the_files_are_here(words: Path, stdlib_model: Path, tmp_path: Path) -> None:
    calibration = {"path": str(words), "column": "body", "samples": 2, "sequence_length": 64}
    qad = QAD | {"data": {"kind": "chat", "path": str(_link(words))}}
    recipe = _recipe(PTQ, qad, model={"path": str(stdlib_model)}, calibration=calibration)
    with pytest.raises(RecipeError, match="files that evaluation text is held out from"):
        fetch(recipe, tmp_path / "work", lambda _: None)


class TestLabels:
    def _recipe(self, measured: dict[str, str], trained: dict[str, str], calibration: dict[str, str]) -> Recipe:
        data = {"kind": "labelled", **trained}
        return recipe_from(
            {
                "model": {"id": "google-bert/bert-base-uncased"},
                "calibration": calibration,
                "chain": [{"technique": "finetune", "data": data}],
                "target": {"format": "dense"},
                "evaluate": [{"evaluator": "classification", **measured}],
            }
        )

    @pytest.mark.parametrize(
        ("measured", "trained", "calibration"),
        [
            ({}, {"dataset": "imdb"}, {"dataset": "imdb"}),
            ({}, {"dataset": "imdb", "revision": "v1"}, {"dataset": "imdb"}),
            ({"path": "/d/train.csv"}, {"path": "/d/./train.csv"}, {"dataset": "imdb"}),
            ({"path": "/d/e/../train.csv"}, {}, {"path": "/d/train.csv"}),
        ],
    )
    def test_names_of_one_text(
        self, measured: dict[str, str], trained: dict[str, str], calibration: dict[str, str]
    ) -> None:
        with pytest.raises(RecipeError, match="on the texts that the chain trains on") as caught:
            check_measures(self._recipe(measured, trained, calibration))
        assert caught.value.field == "/evaluate/0/path"

    def test_another_subset_is_another_text(self) -> None:
        check_measures(self._recipe({}, {"dataset": "glue", "subset": "cola"}, {"dataset": "glue", "subset": "sst2"}))

    def test_a_fallback_that_trains_on_labels(self) -> None:
        gate = {"metric": "accuracy", "min": 0.9, "on_fail": "fallback"}
        fallback = [QAD | {"data": {"kind": "labelled", "path": "a.csv"}}]
        ptq = {"technique": "ptq", "scheme": "int8", "gate": gate, "fallback": fallback}
        with pytest.raises(RecipeError, match="on the texts that the chain trains on"):
            check_measures(_recipe(ptq, evaluate=[{"evaluator": "classification", "path": "a.csv"}]))
        check_measures(_recipe(ptq, evaluate=[{"evaluator": "classification", "path": "b.csv"}]))

    @pytest.mark.parametrize("named", [_link, _copy])
    def test_files_that_are_the_same_by_what_they_hold(self, named: Any, words: Path, tmp_path: Path) -> None:
        recipe = self._recipe({"path": str(named(words))}, {"path": str(words)}, {"dataset": "imdb"})
        check_measures(recipe)
        texts = {"/chain/0/data": [words]}
        with pytest.raises(RecipeError, match="on the texts that the chain trains on") as caught:
            _check(recipe, [], texts, "text-classification")
        assert caught.value.field == "/evaluate/0/path"
        other = tmp_path / "other.jsonl"
        other.write_text("{}")
        _check(recipe, [], {"/chain/0/data": [other]}, "text-classification")

    def test_a_subset_that_turns_out_to_be_calibration_s(self, words: Path) -> None:
        recipe = self._recipe({}, {"dataset": "imdb", "subset": "plain_text"}, {"dataset": "imdb"})
        check_measures(recipe)
        with pytest.raises(RecipeError, match="on the texts that the chain trains on"):
            _check(recipe, [words], {"/chain/0/data": [words]}, "text-classification")
