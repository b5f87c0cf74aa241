"""Where a text ends: at the first token, counted one by one, at which decoding without drafts would have stopped."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

_CONFIGS = ("generation_config.json", "config.json")
_ROUND_A_STRING_tokens = 8
"""Tokens before a stop string that are decoded with it: the first of any may lose a space, or be half a character."""


@dataclass(frozen=True)
class Stop:
    """Tokens and strings that end a text. Both stay in it, and so does what their last token says behind a string."""

    eos: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()
    tokenizer: Any = None
    """What makes text of tokens; needed for strings only."""

    def __post_init__(self) -> None:
        assert self.tokenizer is not None or not self.strings, "stop strings need a tokenizer"
        assert "" not in self.strings, "a stop string has at least one character"

    def length(self, tokens: Sequence[int], known: int = 0) -> int | None:
        """Of how many tokens the text consists, or None where it goes on; the first `known` are known not to end it."""
        for length in range(known + 1, len(tokens) + 1):
            if tokens[length - 1] in self.eos or (self.strings and self._says_one(tokens, length)):
                return length
        return None

    @cached_property
    def _reach(self) -> int:
        """Tokens at the end that a string which ends there lies in: each holds a byte or more."""
        return max(len(string.encode()) for string in self.strings) + _ROUND_A_STRING_tokens

    def _says_one(self, tokens: Sequence[int], length: int) -> bool:
        last = list(tokens[max(0, length - self._reach) : length])
        text = self.tokenizer.decode(last, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return any(string in text for string in self.strings)


NEVER = Stop()


def ends_of(folder: Path, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a text, by all that a checkpoint and its tokenizer say: chat models have several."""
    return frozenset(_ends(folder, tokenizer))


def _ends(folder: Path, tokenizer: Any) -> Iterator[int]:
    configs = [json.loads((folder / name).read_text()) for name in _CONFIGS if (folder / name).exists()]
    texts = [config.get("text_config") or {} for config in configs]
    for said in (*(config.get("eos_token_id") for config in (*configs, *texts)), tokenizer.eos_token_id):
        yield from said if isinstance(said, list) else () if said is None else (said,)
