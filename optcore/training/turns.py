"""What a model is asked: a user's turns, each behind the model's own answers to those before it, or a piece of text."""

from collections.abc import Generator, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from optcore.calibration.chat import ChatFormat
from optcore.sources.conversations import Message
from optcore.training.answering import Question
from optcore.training.packing import Document

Turns = Generator[list[int], list[int], None]
"""Gives prompts and is sent the answer to each: token ids, without what the tokenizer puts before any text."""


def piece(ids: list[int]) -> Turns:
    """A text that the model goes on with."""
    yield ids


def conversation(
    chat: ChatFormat, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], ends: frozenset[int]
) -> Turns:
    """Every turn of the user, behind what the model answered to those before it: what the data has as answers is not
    read. A conversation ends before what neither the system nor the user says, such as a tool's results."""
    said: list[Message] = []
    followers = [message["role"] for message in messages[1:]] + ["assistant"]
    for message, follower in zip(messages, followers, strict=True):
        if message["role"] == "assistant":
            continue
        if message["role"] not in ("system", "user"):
            return
        said.append(message)
        if message["role"] == "user" and follower == "assistant":
            answer = yield chat.prompt(said)
            spoken = answer[:-1] if answer[-1] in ends else answer
            said.append({"role": "assistant", "content": str(tokenizer.decode(spoken))})


class Talk:
    """One conversation as far as it is written, in a window that has room for so many tokens."""

    def __init__(self, turns: Turns, room: int, generator: torch.Generator, temperature: float) -> None:
        self._generator = generator
        self._temperature = temperature
        self.documents: list[Document] = []
        self._turns = turns
        self._room = room
        self.prompt = self._fitting(next(turns, None))
        """What is to be answered next; None where the conversation is over, or fills its window."""

    def question(self, before: Sequence[int], new_tokens: int | None) -> Question:
        """What to ask, behind what the tokenizer puts before any text; the answer must fit into the window."""
        assert self.prompt is not None
        left = self._room - len(self.prompt)
        return Question([*before, *self.prompt], min(new_tokens or left, left), self._temperature, self._generator)

    def go_on(self, answer: list[int]) -> None:
        """Put the answer behind its prompt. Only what the model said is learned.

        A template that rewrites earlier turns (dropping what was only thought) makes another text of the conversation:
        then each turn is a document, so that every answer stands behind the very tokens that it was an answer to.
        """
        assert self.prompt is not None
        before = [False] * len(self.prompt)
        if self.documents and self.documents[-1].ids == self.prompt[: len(self.documents[-1].ids)]:
            learned = self.documents.pop().learned or []
            before[: len(learned)] = learned
        self.documents.append(Document(self.prompt + answer, before + [True] * len(answer)))
        try:
            self.prompt = self._fitting(self._turns.send(answer))
        except StopIteration:
            self.prompt = None

    def _fitting(self, prompt: list[int] | None) -> list[int] | None:
        return prompt if prompt and len(prompt) < self._room else None
