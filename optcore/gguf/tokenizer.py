"""A tokenizer.json in GGUF's terms: tokens with their kinds, merges or scores, and what is put around a text."""

import json
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from optcore.errors import RecipeError
from optcore.gguf.pre_tokenizers import UNKNOWN, differences, pre_tokenizer_name

_SPACE = "\u2581"
"""What SentencePiece writes for a space."""


class Kind(IntEnum):
    """Of a token; https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Ends(NamedTuple):
    """What is put before and after a text."""

    adds_bos: bool
    adds_eos: bool


class Vocabulary(NamedTuple):
    """A tokenizer as llama.cpp reads it."""

    model: str
    """`gpt2` merges bytes, `llama` merges characters as SentencePiece does."""
    tokens: list[str]
    kinds: list[Kind]
    specials: dict[str, int]
    """Numbers of the `bos`, `eos`, `pad` and `unk` tokens, as far as there are any."""
    ends: Ends
    rule: str = UNKNOWN
    """How text is cut before merging, for `gpt2`."""
    merges: list[str] | None = None
    """For `gpt2`, the first one first."""
    scores: list[float] | None = None
    """For `llama`: the token with the highest one is merged first."""
    prefixes_space: bool = False
    """Whether a space is put before a text, for `llama`."""
    template: str | list[dict[str, str]] = ""
    """Chat template, or several by name."""
    remarks: tuple[str, ...] = ()
    """In what llama.cpp would read text differently."""


def check_tokenizer(folder: Path, field: str) -> None:
    """Raises `RecipeError` for a tokenizer that is neither of the two kinds that are written."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise RecipeError(
            "the model has no tokenizer.json, from which GGUF's tokenizer is made",
            remedy="load the tokenizer with transformers and save it again (`tokenizer.save_pretrained`)",
            field=field,
        )
    model = json.loads(path.read_text())["model"]
    if model.get("type") != "BPE":
        raise RecipeError(
            f"the tokenizer is a {model.get('type')} one; GGUF is written with byte-pair ones",
            remedy="choose `compressed-tensors`, or convert with llama.cpp's own script",
            field=field,
        )


def read_vocabulary(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """The tokenizer of a checkpoint folder, with as many tokens as the embedding has rows.

    Raises `RecipeError` where it has more.
    """
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    settings = _json(folder / "tokenizer_config.json")
    tokens, kinds = _tokens(tokenizer, int(config["vocab_size"]))
    specials = _specials(settings, _json(folder / "generation_config.json"), config, tokens)
    common = Vocabulary(
        model="",
        tokens=tokens,
        kinds=kinds,
        specials=specials,
        ends=_ends(tokenizer, settings, specials, tokens),
        template=_template(folder, settings),
    )
    return _pieces(tokenizer, common) if tokenizer["model"].get("byte_fallback") else _bytes(tokenizer, common)


def _tokens(tokenizer: Mapping[str, Any], rows: int) -> tuple[list[str], list[Kind]]:
    """Tokens and their kinds by number; rows of the embedding that no token has are named and marked unused."""
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    added = tokenizer.get("added_tokens") or []
    count = 1 + max([*vocabulary.values(), *(token["id"] for token in added)])
    if count > rows:
        raise RecipeError(
            f"the tokenizer has {count} tokens, and the embedding {rows} rows",
            remedy="give the tokenizer that belongs to the model",
            field="/model",
        )
    tokens = [f"[PAD{number}]" for number in range(rows)]
    kinds = [Kind.UNUSED] * rows
    for text, number in vocabulary.items():
        tokens[number], kinds[number] = text, Kind.NORMAL
    for token in added:
        tokens[token["id"]] = token["content"]
        kinds[token["id"]] = Kind.CONTROL if token["special"] else Kind.USER_DEFINED
    return tokens, kinds


def _bytes(tokenizer: Mapping[str, Any], common: Vocabulary) -> Vocabulary:
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    rule, remarks = pre_tokenizer_name(tokenizer), tuple(differences(tokenizer))
    return common._replace(model="gpt2", rule=rule, merges=merges, remarks=remarks)


def _pieces(tokenizer: Mapping[str, Any], common: Vocabulary) -> Vocabulary:
    """Scores that merge in the order of the merges: llama.cpp looks at the token that a merge makes."""
    rank: dict[str, int] = {}
    for number, merge in enumerate(tokenizer["model"]["merges"]):
        rank.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), number)
    kinds = list(common.kinds)
    for number, text in enumerate(common.tokens):
        if kinds[number] == Kind.NORMAL and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            kinds[number] = Kind.BYTE
    if (unknown := common.specials.get("unk")) is not None:
        kinds[unknown] = Kind.UNKNOWN
    return common._replace(
        model="llama",
        kinds=kinds,
        scores=[-float(rank.get(text, len(rank))) for text in common.tokens],
        prefixes_space=_prefixes_space(tokenizer),
    )


def _prefixes_space(tokenizer: Mapping[str, Any]) -> bool:
    normalizer, cutter = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), *cutter.get("pretokenizers", [cutter])]
    return any(
        (step.get("type") == "Prepend" and step.get("prepend") == _SPACE)
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )


def _specials(
    settings: Mapping[str, Any], generation: Mapping[str, Any], config: Mapping[str, Any], tokens: list[str]
) -> dict[str, int]:
    """By the tokenizer's settings, else by the model's; of several ends of text the first."""
    number_of = {text: number for number, text in enumerate(tokens)}
    found = {}
    for name in ("bos", "eos", "pad", "unk"):
        said = settings.get(f"{name}_token")
        text = said.get("content") if isinstance(said, dict) else said
        number = number_of.get(text) if text else None
        for source in (config, generation):
            number = source.get(f"{name}_token_id") if number is None else number
        number = number[0] if isinstance(number, list) else number
        if number is not None and 0 <= number < len(tokens):
            found[name] = int(number)
    return found


def _ends(
    tokenizer: Mapping[str, Any], settings: Mapping[str, Any], specials: Mapping[str, int], tokens: list[str]
) -> Ends:
    """What the template of a single text begins and ends with; where there is none, what the settings say."""
    processor = tokenizer.get("post_processor") or {}
    steps = [*processor.get("processors", [processor])]
    template = next((step["single"] for step in steps if step.get("type") == "TemplateProcessing"), None)
    if template is None:
        return Ends(bool(settings.get("add_bos_token")), bool(settings.get("add_eos_token")))
    marks = [part["SpecialToken"]["id"] if "SpecialToken" in part else "" for part in template] or [""]

    def is_at(name: str, place: int) -> bool:
        return name in specials and marks[place] == tokens[specials[name]]

    return Ends(is_at("bos", 0), is_at("eos", -1))


def _template(folder: Path, settings: Mapping[str, Any]) -> str | list[dict[str, str]]:
    path = folder / "chat_template.jinja"
    found: str | list[dict[str, str]] = path.read_text() if path.exists() else settings.get("chat_template") or ""
    return found


def _json(path: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found
