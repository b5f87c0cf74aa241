"""Conversations out of JSON lines and Parquet files, in the forms in which chat data is published."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from optcore.errors import DataError
from optcore.sources.splits import form_of
from optcore.sources.texts import read_records

Message = dict[str, str]
"""`role` and `content`."""
COLUMNS = ("messages", "conversations", "conversation")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant"}  # ShareGPT's names
_FIELD = "/chain"


def holds_conversations(files: Sequence[Path], column: str | None) -> bool:
    """Whether the first record of the files has a list of messages, rather than a text."""
    if not files or form_of(files[0].name) in (".txt", ".csv"):
        return False
    record = next(read_records(files), {})
    return isinstance(record.get(_column(record, column) or ""), list)


def read_conversations(
    files: Sequence[Path], column: str | None, speaker: str = "assistant"
) -> Iterator[list[Message]]:
    """Every conversation in which the speaker says something.

    Understands lists of `{role, content}` and of ShareGPT's `{from, value}`. Raises `DataError`.
    """
    found = False
    for record in read_records(files):
        messages = _messages(record, column)
        if any(message["role"] == speaker and _says(message) for message in messages):
            found = True
            yield messages
    if not found:
        names = ", ".join(file.name for file in files)
        raise DataError(
            f"no conversation in which the {speaker} says something in {names or 'no files'}",
            remedy="name data with answers" if speaker == "assistant" else "name data with questions",
            field=_FIELD,
        )


def _messages(record: dict[str, Any], column: str | None) -> list[Message]:
    name = _column(record, column)
    if name is None or name not in record:
        raise DataError(
            f"no column of conversations{f' {column!r}' if column else ''}",
            remedy=f"name one in `column`; the columns are {', '.join(map(str, record))}",
            field=_FIELD,
        )
    messages = record[name]
    if not isinstance(messages, list):
        raise DataError(f"column {name!r} holds {type(messages).__name__}, no list of messages", field=_FIELD)
    return list(_each(messages))


def _says(message: Message) -> bool:
    """An empty question asks nothing; an empty answer ends a turn, which is to be learned too."""
    return message["role"] == "assistant" or bool(message["content"].strip())


def _column(record: dict[str, Any], column: str | None) -> str | None:
    return column or next((name for name in COLUMNS if name in record), None)


def _each(messages: Iterable[Any]) -> Iterator[Message]:
    for message in messages:
        if not isinstance(message, dict):
            raise DataError("a message is an object with `role` and `content`", field=_FIELD)
        role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise DataError(
                "a message has no `role` and `content` of text",
                remedy="write each message as {role, content}; pictures and tool calls are not read",
                field=_FIELD,
            )
        yield {"role": _ROLES.get(role, role), "content": content}
