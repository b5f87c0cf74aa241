"""What a source's own model card says that must go along with what is made of it: its licence and its languages."""

import re
from pathlib import Path
from typing import Any

from optcore.errors import RecipeError
from optcore.frozen import Frozen
from optcore.links import LICENCES
from optcore.yaml_text import read_document

CARD = "README.md"
MAX_CARD_bytes = 256 * 1024
_LONGEST = 500
_HEAD = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


class SourceCard(Frozen):
    """Fields of the YAML head of a card, by the Hub's names; empty where it says nothing.

    https://github.com/huggingface/hub-docs/blob/main/modelcard.md
    """

    license: str = ""
    """An identifier such as `apache-2.0`, or `other`."""
    license_name: str = ""
    """Of a licence that is `other`."""
    license_link: str = ""
    """Where that one's text is: an address, or a file that goes along."""
    language: tuple[str, ...] = ()


def read_source_card(folder: Path) -> SourceCard:
    """The card of a checkpoint folder. A card that cannot be read says nothing: nobody's job fails because of it."""
    head = _head(folder / CARD)
    languages = head.get("language")
    listed = languages if isinstance(languages, list) else [languages]
    return SourceCard(
        license=_text(head.get("license")),
        license_name=_text(head.get("license_name")),
        license_link=_link(_text(head.get("license_link")), folder),
        language=tuple(word for each in listed[:200] if (word := _text(each))),
    )


def _head(path: Path) -> dict[Any, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CARD_bytes).decode("utf-8", errors="replace")
        found = _HEAD.match(text)
        head = read_document(found[1]) if found else None
    except (OSError, RecipeError):
        return {}
    return head if isinstance(head, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value.isprintable() and len(value) <= _LONGEST else ""


def _link(value: str, folder: Path) -> str:
    """A relative link is true of the result too where that file is one that goes along."""
    if value.startswith(("https://", "http://")):
        return value
    return value if value in LICENCES and (folder / value).is_file() else ""
