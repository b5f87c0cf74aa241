"""Conversations as the model would see them, and which of their tokens the assistant said."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from optcore.calibration.text import frame_of
from optcore.errors import DataError
from optcore.sources.conversations import Message


class Spoken(NamedTuple):
    """A conversation in token ids."""

    ids: list[int]
    is_assistant: list[bool]
    """By token: whether the assistant said it, its end-of-turn token included."""


class ChatFormat:
    """A tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises `DataError` for a tokenizer that has none."""
        if not tokenizer.chat_template:
            raise DataError(
                "the tokenizer has no chat template, and the data holds conversations",
                remedy="use a chat model, or `data: {kind: text}` with a text column",
                field="/chain",
            )
        self._tokenizer = tokenizer
        self._before = list(frame_of(tokenizer).before)

    def spoken(self, messages: Sequence[Message]) -> Spoken:
        """Token ids, and what the assistant said of them.

        What the tokenizer puts before any text (BOS) is left out where the template writes it too: windows begin
        with it anyway, and no engine gives it twice.

        An answer is what the template adds to the conversation before it with the answer's opening already written
        (`add_generation_prompt`). Templates that rewrite earlier turns (dropping what was only thought) leave the turns
        that they rewrite unlearned. Raises `DataError` when nothing is left to learn.
        """
        whole = self._text(messages)
        spans = [span for place in range(len(messages)) if (span := self._answer(messages, place, whole))]
        if not spans:
            raise DataError(
                "no answer can be told from the rest of a conversation by the tokenizer's chat template",
                remedy="use another chat template, or `data: {kind: text}`",
                field="/chain",
            )
        encoded = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        inside = [_begins_in(start, end, spans) for start, end in encoded["offset_mapping"]]
        ids = list(encoded["input_ids"])
        start = self._start(ids)
        return Spoken(ids[start:], inside[start:])

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Token ids up to where the assistant's next answer begins; as in `spoken`, without what stands before any."""
        text = self._text(messages, prompt=True)
        ids = list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        return ids[self._start(ids) :]

    def _start(self, ids: list[int]) -> int:
        return len(self._before) if ids[: len(self._before)] == self._before else 0

    def _answer(self, messages: Sequence[Message], place: int, whole: str) -> tuple[int, int] | None:
        """Characters of one message's answer in the whole text."""
        if messages[place]["role"] != "assistant":
            return None
        before, after = self._text(messages[:place], prompt=True), self._text(messages[: place + 1])
        return (len(before), len(after)) if after.startswith(before) and whole.startswith(after) else None

    def _text(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=prompt
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise DataError(
                f"the chat template refuses a conversation: {error}",
                remedy="correct the order of roles in the data",
                field="/chain",
            ) from error
        return text


def _begins_in(start: int, end: int, spans: Iterable[tuple[int, int]]) -> bool:
    """A token that begins in an answer was the assistant's to say, also where it reaches beyond."""
    return end > start and any(first <= start < last for first, last in spans)
