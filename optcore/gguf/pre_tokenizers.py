"""How text is cut before byte-pair merges: the rules of tokenizer.json by the names that llama.cpp knows them under.

GGUF holds no regular expression, only a name (`tokenizer.ggml.pre`); llama.cpp has the rule. Names by rule:
https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp.
"""

from collections.abc import Mapping
from typing import Any

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
_GPT_4O = "|".join(f"{cased}{_CONTRACTIONS}?" for cased in _CASED)
_RULES: dict[tuple[str, ...], str] = {
    ("bytes, cut",): "gpt-2",
    ("digits", "bytes, cut"): "smollm",
    (_LLAMA3, "bytes"): "smaug-bpe",
    (_QWEN2, "bytes"): "qwen2",
    (_QWEN2.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}", r"[^\s\p{L}\p{M}"), "bytes"): "qwen35",
    (rf"{_GPT_4O}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}", "bytes"): "gpt-4o",
    (_TEKKEN, "bytes"): "tekken",
}
_WHOLE_FIRST = {"smaug-bpe": "llama-bpe", "tekken": "tekken"}
"""What a rule is called where a piece that is a token is taken whole, without merging up to it (`ignore_merges`)."""
UNKNOWN = "default"


def pre_tokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name of the rule in a tokenizer.json; `UNKNOWN` where it has none that cuts in the same places."""
    name = _RULES.get(_rule(tokenizer.get("pre_tokenizer") or {}), UNKNOWN)
    return _WHOLE_FIRST.get(name, name) if tokenizer["model"].get("ignore_merges") else name


def differences(tokenizer: Mapping[str, Any]) -> list[str]:
    """In what llama.cpp will read text otherwise than this tokenizer, in sentences."""
    name, found = pre_tokenizer_name(tokenizer), []
    if name == UNKNOWN:
        found.append(
            "llama.cpp has no name for the rule by which this tokenizer cuts text, and cuts some of it elsewhere"
        )
    elif bool(tokenizer["model"].get("ignore_merges")) != (name in _WHOLE_FIRST.values()):
        found.append(
            "llama.cpp and this tokenizer do not agree on tokens that no merges lead to; few tokenizers have any"
        )
    if tokenizer.get("normalizer"):
        found.append("llama.cpp does not normalize text as this tokenizer does; text in NFC, as most is, is read alike")
    return found


def _rule(step: Mapping[str, Any]) -> tuple[str, ...]:
    """The steps of a pre-tokenizer, one word each."""
    match step:
        case {"type": "Sequence", "pretokenizers": [*steps]}:
            return tuple(word for one in steps for word in _rule(one))
        case {"type": "Digits", "individual_digits": True}:
            return ("digits",)
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return (pattern,)
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return ("bytes, cut" if step.get("use_regex", True) else "bytes",)
    return (str(step),)
