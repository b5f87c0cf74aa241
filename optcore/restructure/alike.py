"""Whether two checkpoints are the same model but for the values of its weights."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from optcore.errors import RecipeError
from optcore.sources.vocabulary import check_same_vocabulary
from optcore.streaming.reader import TensorReader

_DECIDES = re.compile(
    r"(model_type|architectures|hidden_act\w*|activation_function|layer_types|id2label|tie_word_embeddings"
    r"|num_.*|n_\w+|\w+_dim|\w+_size)$"
)
"""Settings that decide what a weight means; others such as token ids may differ between fine-tunes of one model."""
_BOOKKEEPING = re.compile(r"(_\w+|transformers_version|torch_dtype|dtype|use_cache|unsloth_version)$")
_HEADS = ("lm_head.weight", "embed_out.weight")
_SHOWN = 3


class Alike(NamedTuple):
    """What is still different between two checkpoints that fit."""

    differing: tuple[str, ...]
    """Settings of config.json that decide nothing about the weights."""
    redundant: frozenset[str]
    """Heads that a checkpoint stores although they are its embeddings: no model reads them."""


def check_alike(model: Path, other: Path, field: str) -> Alike:
    """Refuse models whose weights do not mean the same. Raises `RecipeError` or `VocabularyMismatch`, with `field`."""
    from transformers import AutoConfig

    own, theirs = (
        dict(_settings(AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()))
        for folder in (model, other)
    )
    different = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
    decides = [key for key in different if _DECIDES.fullmatch(key.rpartition(".")[2])]
    if decides:
        said = [f"{key} is {own.get(key)} in one and {theirs.get(key)} in the other" for key in decides[:_SHOWN]]
        raise _refused(f"the models' architectures differ: {'; '.join(said)}{_more(decides)}", field)
    check_same_vocabulary(model, other, field)
    redundant = _check_tensors(model, other, bool(own.get("tie_word_embeddings")), field)
    return Alike(tuple(different), redundant)


def _settings(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Of nested configurations too, by dotted names; defaults are filled in: leaving one out is no difference."""
    for name, value in config.items():
        if name.endswith("_config") and isinstance(value, dict):
            yield from _settings(value, f"{prefix}{name}.")
        elif not _BOOKKEEPING.fullmatch(name):
            yield f"{prefix}{name}", value


def _check_tensors(model: Path, other: Path, is_tied: bool, field: str) -> frozenset[str]:
    """Same names and shapes; returns the heads that a tied model does not need."""
    own, theirs = TensorReader(model), TensorReader(other)
    redundant = frozenset(name for name in {*own.names, *theirs.names} if is_tied and name.endswith(_HEADS))
    names = [{*reader.names} - redundant for reader in (own, theirs)]
    for missing, where in ((names[0] - names[1], "chain's"), (names[1] - names[0], "other")):
        if missing:
            said = ", ".join(sorted(missing)[:_SHOWN])
            raise _refused(f"only the {where} model has the tensors {said}{_more(missing)}", field)
    for name in sorted(names[0]):
        if own.shape(name) != theirs.shape(name):
            raise _refused(f"{name} is {own.shape(name)} in one model and {theirs.shape(name)} in the other", field)
    return redundant


def _more(found: "list[str] | set[str]") -> str:
    return f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""


def _refused(said: str, field: str) -> RecipeError:
    remedy = "merge models of one architecture and size, such as fine-tunes of one base model"
    return RecipeError(said, remedy=remedy, field=field)
