"""Bringing calibration text here, and reading it."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from fixtures.hub import HubPeer

import optcore.sources.client
from optcore.errors import DataError, SourceGated, SourceNotFound
from optcore.references import Calibration
from optcore.sources.datasets import FetchedData, fetch_data
from optcore.sources.splits import train_files
from optcore.sources.texts import read_texts


def fetch(cache: Path, **calibration: object) -> FetchedData:
    return fetch_data(Calibration.model_validate(calibration).needed, cache, lambda *_: None)


def parquet(path: Path, **columns: list[object]) -> bytes:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path.read_bytes()


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def at_hub(hub: HubPeer, monkeypatch: pytest.MonkeyPatch) -> HubPeer:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setattr(optcore.sources.client, "WAITS_seconds", ())
    return hub


# Which files


def test_python_stdlib_needs_no_files_and_has_one_digest(tmp_path: Path) -> None:
    fetched = fetch(tmp_path, dataset="python-stdlib")
    assert fetched[:2] == ((), None)
    assert fetched == fetch(tmp_path, dataset="python-stdlib")
    assert len(fetched.digest) == 64


def test_the_shards_of_a_canonical_data_set_come_as_needed(at_hub: HubPeer, tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {}
    for version in ("1.0.0", "3.0.0"):
        for split in ("train", "test"):
            for number in range(3):
                article = [f"{version} {split} {number} " + "word " * 50_000]
                data = parquet(tmp_path / "made", article=article, highlights=["short"], id=["7"])
                files[f"{version}/{split}-0000{number}-of-00003.parquet"] = data
    commit = at_hub.put("cnn_dailymail", files, kind="datasets")
    wanted = {"dataset": "cnn_dailymail", "subset": "3.0.0"}
    few = fetch(tmp_path / "cache", **wanted, samples=1, sequence_length=8)
    assert few.revision == commit
    assert [path.name for path in few.files] == ["train-00000-of-00003.parquet"]
    assert next(read_texts(few.files, None)).startswith("3.0.0 train 0")
    many = fetch(tmp_path / "cache", **wanted)
    assert [path.name[:11] for path in many.files] == ["train-00000", "train-00001", "train-00002"]
    assert many.digest != few.digest
    assert next(read_texts(fetch(tmp_path / "cache", dataset="cnn_dailymail", samples=1).files, None)).startswith(
        "1.0.0"
    )


def test_json_lines_in_a_data_folder(at_hub: HubPeer, tmp_path: Path) -> None:
    first = at_hub.put("me/d", {"data/train.jsonl": lines({"text": "one"}), "data/test.jsonl": "{"}, kind="datasets")
    fetched = fetch(tmp_path, dataset="me/d")
    assert list(read_texts(fetched.files, None)) == ["one"]
    at_hub.put("me/d", {"data/train.jsonl": lines({"text": "two"})}, kind="datasets")
    assert fetch(tmp_path, dataset="me/d", revision=first) == fetched
    assert fetch(tmp_path, dataset="me/d").digest != fetched.digest


def test_the_cards_configs_decide(at_hub: HubPeer, tmp_path: Path) -> None:
    card = """---
configs:
- config_name: raw
  data_files:
  - {split: train, path: a/part-*.csv}
  - {split: test, path: b/*}
- config_name: clean
  default: true
  data_files: c/*.txt
---
"""
    files = {"README.md": card, "a/part-1.csv": "text\nraw\n", "b/part-1.csv": "text\nno\n", "c/x.txt": "clean"}
    at_hub.put("me/d", files, kind="datasets")
    assert list(read_texts(fetch(tmp_path, dataset="me/d").files, None)) == ["clean"]
    assert list(read_texts(fetch(tmp_path, dataset="me/d", subset="raw").files, None)) == ["raw"]
    with pytest.raises(DataError, match="'none'") as caught:
        fetch(tmp_path, dataset="me/d", subset="none")
    assert caught.value.field == "/calibration/subset"
    assert "clean, raw" in caught.value.remedy


def test_what_cannot_be_used_names_the_field(at_hub: HubPeer, tmp_path: Path) -> None:
    at_hub.put("me/pictures", {"train/cat.png": b"x", "dataset_info.json": "{}"}, kind="datasets")
    at_hub.put("me/gated", {"train.csv": "text\nx\n"}, kind="datasets", gated="auto")
    for dataset, kind in {"me/pictures": DataError, "me/absent": SourceNotFound, "me/gated": SourceGated}.items():
        with pytest.raises(kind) as caught:
            fetch(tmp_path, dataset=dataset)
        assert caught.value.field == "/calibration/dataset"
        assert caught.value.remedy
    with pytest.raises(SourceNotFound) as absent:
        fetch(tmp_path, dataset="me/pictures", revision="v2")
    assert absent.value.field == "/calibration/revision"


@pytest.mark.parametrize(
    ("paths", "chosen"),
    [
        (["train.jsonl", "valid.jsonl"], ["train.jsonl"]),
        (["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet"],
         ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]),
        (["en/c4-train.00000-of-01024.json.gz", "en/c4-validation.00000-of-00008.json.gz", "eu/train.json.gz"],
         ["en/c4-train.00000-of-01024.json.gz"]),
        (["train.csv", "train.parquet"], ["train.parquet"]),
        (["book.txt", "requirements.txt", ".hidden.txt"], ["book.txt"]),
        (["dataset_infos.json", "train.json"], ["train.json"]),
        (["plain_text/train/0000.parquet", "plain_text/test/0000.parquet"], ["plain_text/train/0000.parquet"]),
        (["train/a.txt", "train/b.txt", "test/a.txt"], ["train/a.txt", "train/b.txt"]),
        (["a/../../train.txt", "ok_train.txt"], ["ok_train.txt"]),
    ],
)  # fmt: skip
def test_the_training_split_is_found(paths: list[str], chosen: list[str]) -> None:
    assert list(train_files(paths, {}, None)) == chosen


@pytest.mark.parametrize("configs", ["x", [1], [{"data_files": 3}], [{"data_files": [{"split": "train"}]}], {}])
def test_an_odd_card_is_no_error(configs: object) -> None:
    assert train_files(["train.csv"], {"configs": configs}, None) == ("train.csv",)


# A file of this machine


def test_a_local_file_is_found_and_confined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my.txt"
    file.write_text("words")
    monkeypatch.delenv("LATHE_MODEL_ROOTS", raising=False)
    fetched = fetch(tmp_path, path=str(file))
    assert fetched[:2] == ((file,), None)
    monkeypatch.setenv("LATHE_MODEL_ROOTS", "/nowhere")
    with pytest.raises(DataError, match="outside the folders") as caught:
        fetch(tmp_path, path=str(file))
    assert caught.value.field == "/calibration/path"


@pytest.mark.parametrize("name", ["absent.txt", "table.xlsx"])
def test_a_local_file_that_is_absent_or_odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv("LATHE_MODEL_ROOTS", raising=False)
    (tmp_path / "table.xlsx").write_text("x")
    with pytest.raises(DataError, match=name) as caught:
        fetch(tmp_path, path=str(tmp_path / name))
    assert caught.value.field == "/calibration/path"


# Reading


@pytest.fixture
def every_form(tmp_path: Path) -> dict[str, Path]:
    """The same two documents, and a blank one, in every form."""
    texts = ["first\nwith two lines", "  ", "zweiter Text: ü"]
    files = {form: tmp_path / f"x.{form}" for form in ("jsonl", "json", "jsonl.gz", "json.gz", "csv", "parquet")}
    records = lines(*({"id": "n", "n": 1, "text": text} for text in texts))
    files["jsonl"].write_text(records, encoding="utf-8")
    files["json"].write_text(records, encoding="utf-8")
    for form in ("jsonl.gz", "json.gz"):
        files[form].write_bytes(gzip.compress(records.encode(), mtime=0))
    files["csv"].write_text("id,text\n" + "".join(f'n,"{text}"\n' for text in texts), encoding="utf-8")
    parquet(files["parquet"], id=["n"] * 4, n=[1] * 4, text=[*texts, None])
    return files


@pytest.mark.parametrize("form", ["jsonl", "json", "jsonl.gz", "json.gz", "csv", "parquet"])
def test_every_form_gives_the_same_documents(every_form: dict[str, Path], form: str) -> None:
    expected = ["first\nwith two lines", "zweiter Text: ü"]
    assert list(read_texts([every_form[form]], None)) == expected
    assert list(read_texts([every_form[form]], "text")) == expected
    assert next(read_texts([every_form[form]], "id")) == "n"


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"{name}\nmore")
    assert list(read_texts([tmp_path / "a.txt", tmp_path / "b.txt"], None)) == ["a.txt\nmore", "b.txt\nmore"]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("column", ["summary", "n"])
def test_a_column_that_is_not_there_or_no_text(every_form: dict[str, Path], form: str, column: str) -> None:
    with pytest.raises(DataError, match=column) as caught:
        list(read_texts([every_form[form]], column))
    assert caught.value.field == "/calibration/column"


def test_columns_are_chosen_in_order_and_never_guessed(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(lines({"content": "c", "article": "a", "n": 1}))
    assert list(read_texts([file], None)) == ["a"]
    file.write_text(lines({"n": 1, "body": "the only text"}))
    assert list(read_texts([file], None)) == ["the only text"]
    file.write_text(lines({"question": "q", "answer": "a"}))
    with pytest.raises(DataError, match="question, answer") as caught:
        list(read_texts([file], None))
    assert caught.value.field == "/calibration/column"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.jsonl", b'{"text": "a"}\nnot json\n', "line 2"),
        ("x.jsonl", b"[1]\n", "line 1"),
        ("x.txt", b"\xff\xfe\x00", "cannot read x.txt"),
        ("x.jsonl.gz", b"not gzip", "cannot read x.jsonl.gz"),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}' * 100, mtime=0)[:-12], "cannot read x.jsonl.gz"),
        ("x.csv", b'text\n"' + b"a" * 200_000 + b'"\n', "cannot read x.csv"),
        ("x.parquet", b"PAR1", "x.parquet is not Parquet"),
        ("x.txt", b" \n ", "no text in x.txt"),
        ("x.docx", b"x", "x.docx"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        list(read_texts([tmp_path / name], None))
    assert caught.value.remedy


def test_parquet_without_pyarrow_says_what_to_install(
    every_form: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match="pyarrow") as caught:
        list(read_texts([every_form["parquet"]], None))
    assert caught.value.remedy == "pip install '.[data]' in Lathe's own folder"
