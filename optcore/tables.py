"""Formats of the tables beside the decoder layers: the embeddings and the head."""

from typing import Annotated, NamedTuple

from pydantic import AfterValidator, WithJsonSchema

from optcore.mixes import base_of, with_fallbacks
from optcore.schemes import GGML_FORMATS


class Tables(NamedTuple):
    """Formats of what tokens are looked up in and of the head; None leaves one in high precision."""

    embedding: str | None
    head: str | None


KEEP = "keep"
AUTO = "auto"
_TABLE_SETTINGS = (AUTO, KEEP, *sorted(GGML_FORMATS))


def _known_table(value: str) -> str:
    if value not in _TABLE_SETTINGS:
        raise ValueError(f"{value!r} is no format of tables; known are {', '.join(_TABLE_SETTINGS)}")
    return value


TableSetting = Annotated[
    str, AfterValidator(_known_table), WithJsonSchema({"type": "string", "enum": list(_TABLE_SETTINGS)})
]
"""What becomes of embeddings and head: as llama.cpp does it, left alone, or one block format for both."""


def tables(setting: str, scheme: str, model_type: str = "") -> Tables:
    """Formats of the embeddings and of the head of a model whose linear layers have this format or mix.

    llama.cpp gives the head six bits and the embeddings the base; a head that shares their values decides for both.
    Rows may be too short for either: see `fitting`.
    """
    base = base_of(scheme)
    if setting == KEEP or (setting == AUTO and base not in GGML_FORMATS):
        return Tables(None, None)
    if setting != AUTO:
        return Tables(setting, setting)
    return Tables(base, "q8_0" if base == "q8_0" or model_type == "falcon" else "q6_k")


def formats_of_tables(setting: str, scheme: str) -> tuple[str, ...]:
    """Every format that `tables` may lead to, whatever the model."""
    named = [name for name in (*tables(setting, scheme), *tables(setting, scheme, "falcon")) if name]
    return with_fallbacks(named)
