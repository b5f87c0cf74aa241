"""Documents, labelled or not, out of text, JSON lines, CSV and Parquet files, one at a time."""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast

from optcore.errors import DataError
from optcore.extras import how_to_install
from optcore.sources.splits import form_of

COLUMNS = ("text", "article", "content")
"""Names that are tried, in this order, when the recipe gives none."""
LONGEST_characters = 64 * 1024 * 1024
"""One document. A longer one is not text for calibration, and would have to fit in memory."""


class Labelled(NamedTuple):
    """One text with its label."""

    text: str
    label: int | str


def read_texts(files: Iterable[Path], column: str | None) -> Iterator[str]:
    """Yield every document that is not blank, in the order of the files.

    Raises `DataError` for a file that is not what its name says, a column that is not there, or no text at all.
    """
    files = tuple(files)
    found = False
    for file in files:
        for text in _READERS[_form(file)](file, column):
            if text.strip():
                found = True
                yield text
    if not found:
        names = ", ".join(file.name for file in files)
        raise DataError(f"no text in {names or 'no files'}", remedy="name data that has text", field="/calibration")


def read_records(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Every row of JSON lines and Parquet files as it is, nested values too. Raises `DataError`."""
    for file in files:
        match _form(file):
            case ".parquet":
                with _parquet_table(file) as table:
                    for batch in table.iter_batches(batch_size=256):
                        yield from batch.to_pylist()
            case ".txt" | ".csv":
                remedy = "give JSON lines or Parquet"
                raise DataError(f"{file.name} cannot hold conversations", remedy=remedy, field="/chain")
            case _:
                yield from _json_records(file)


def read_labelled(files: Iterable[Path], text: str | None, label: str) -> Iterator[Labelled]:
    """Yield every text that is not blank with its label, in the order of the files; rows without a label are left out.

    `text` and `label` are columns. Raises `DataError` as `read_texts` does, and for labels that are no number or name.
    """
    try:
        for file in files:
            for record in _RECORDS.get(_form(file), _no_records)(file):
                column = text or choose_column([k for k, v in record.items() if isinstance(v, str) and k != label])
                if (found := _text(record, column)).strip() and record.get(label, "") is not None:
                    yield Labelled(found, _label(record, label))
    except DataError as error:
        error.field = "/evaluate"
        raise


def _form(file: Path) -> str:
    form = form_of(file.name)
    if not form:
        remedy = "convert it to one of them"
        raise DataError(f"{file.name} is no .txt, .jsonl, .csv or .parquet file", remedy=remedy, field="/calibration")
    return form


def _txt(file: Path, column: str | None) -> Iterator[str]:
    with _reading(file) as text:
        whole = text.read(LONGEST_characters + 1)
    if len(whole) > LONGEST_characters:
        remedy = "write one document a line as .jsonl"
        raise DataError(f"{file.name} is too long for one document", remedy=remedy, field="/calibration")
    yield whole


def _json_lines(file: Path, column: str | None) -> Iterator[str]:
    for record in _json_records(file):
        column = column or choose_column([key for key, value in record.items() if isinstance(value, str)])
        yield _text(record, column)


def _json_records(file: Path) -> Iterator[dict[str, Any]]:
    with _reading(file) as lines:
        for number in count(1):
            line = lines.readline(LONGEST_characters)
            if not line:
                return
            if not line.isspace():
                yield _record(file, number, line)


def _csv_records(file: Path) -> Iterator[dict[str, Any]]:
    with _reading(file) as lines:
        yield from csv.DictReader(lines)


def _csv(file: Path, column: str | None) -> Iterator[str]:
    with _reading(file) as lines:
        rows = csv.DictReader(lines)
        column = column or choose_column(list(rows.fieldnames or []))
        for row in rows:
            yield _text(row, column)


def _parquet(file: Path, column: str | None) -> Iterator[str]:
    with _parquet_table(file) as table:
        texts = [field.name for field in table.schema_arrow if str(field.type) in ("string", "large_string")]
        column = column or choose_column(texts)
        if column not in texts:
            raise _no_column(column, texts)
        for batch in table.iter_batches(batch_size=256, columns=[column]):
            yield from (value for value in batch.column(0).to_pylist() if value)


def _parquet_records(file: Path) -> Iterator[dict[str, Any]]:
    with _parquet_table(file) as table:
        kinds = {field.name: str(field.type) for field in table.schema_arrow}
        plain = [name for name, kind in kinds.items() if kind.startswith(("string", "large_string", "int", "uint"))]
        for batch in table.iter_batches(batch_size=256, columns=plain):
            yield from batch.to_pylist()


@contextmanager
def _parquet_table(file: Path) -> Iterator[Any]:
    """An open Parquet file. What turns out wrong with it while it is read is a `DataError`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        message = f"reading {file.name} needs pyarrow, which is not installed"
        raise DataError(message, remedy=how_to_install("data"), field="/calibration") from error
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            yield table
    except pyarrow.ArrowException as error:
        message = f"{file.name} is not Parquet: {error}"
        raise DataError(message, remedy="download it again", field="/calibration") from error


def _no_records(file: Path) -> Iterator[dict[str, Any]]:
    remedy = "give JSON lines, CSV or Parquet"
    raise DataError(f"{file.name} has no columns, so no labels", remedy=remedy, field="/evaluate")


_READERS: dict[str, Callable[[Path, str | None], Iterator[str]]] = {
    ".txt": _txt,
    ".csv": _csv,
    ".parquet": _parquet,
    ".json": _json_lines,
    ".jsonl": _json_lines,
    ".json.gz": _json_lines,
    ".jsonl.gz": _json_lines,
}


_RECORDS: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
    ".csv": _csv_records,
    ".parquet": _parquet_records,
    ".json": _json_records,
    ".jsonl": _json_records,
    ".json.gz": _json_records,
    ".jsonl.gz": _json_records,
}


@contextmanager
def _reading(file: Path) -> Iterator[TextIO]:
    """A file as UTF-8 text. What turns out wrong with its bytes while it is read is a `DataError`."""
    try:
        if file.name.lower().endswith(".gz"):
            with gzip.open(file, "rt", encoding="utf-8") as unpacked:
                yield cast(TextIO, unpacked)
        else:
            with file.open(encoding="utf-8", newline="") as plain:
                yield plain
    except (UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError, csv.Error) as error:
        remedy = "correct the file, or convert it to UTF-8 JSON lines"
        raise DataError(f"cannot read {file.name}: {error}", remedy=remedy, field="/calibration") from error


def _record(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        message, remedy = f"{file.name}, line {number} is not a JSON object", "write one JSON object a line"
        raise DataError(message, remedy=remedy, field="/calibration")
    return record


def _text(record: dict[str, Any], column: str) -> str:
    """A missing value is no text; a missing column is a mistake."""
    if column not in record:
        raise _no_column(column, list(record))
    value = record[column]
    if value is not None and not isinstance(value, str):
        message = f"column {column!r} holds {type(value).__name__}, not text"
        raise DataError(message, remedy="name a column of text", field="/calibration/column")
    return value or ""


def _label(record: dict[str, Any], column: str) -> int | str:
    if column not in record:
        found = ", ".join(map(str, record)) or "none"
        raise DataError(f"no column {column!r} of labels", remedy=f"columns: {found}", field="/evaluate")
    value = record[column]
    if isinstance(value, bool) or not isinstance(value, int | str):
        message = f"column {column!r} holds {type(value).__name__}, not numbers or names of labels"
        raise DataError(message, remedy="name the column of the labels in `label`", field="/evaluate")
    return value


def choose_column(texts: Sequence[str]) -> str:
    """The column to read when the recipe names none. Raises `DataError` when that is not clear."""
    for name in COLUMNS:
        if name in texts:
            return name
    if len(texts) == 1:
        return texts[0]
    found = ", ".join(texts) or "none"
    message = f"which column holds the text is not clear (text columns: {found})"
    raise DataError(message, remedy="name one in `column`", field="/calibration/column")


def _no_column(column: str, columns: Sequence[str]) -> DataError:
    found = ", ".join(map(str, columns)) or "none"
    return DataError(f"no text column {column!r}", remedy=f"columns: {found}", field="/calibration/column")
