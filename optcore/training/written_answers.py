"""Prompts that a target answers anew, for a draft that learns to guess its words: others' answers do not count."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, count, islice, starmap
from typing import TYPE_CHECKING

import torch

from optcore.calibration.chat import ChatFormat
from optcore.errors import DataError
from optcore.seeds import seed_of
from optcore.sources.conversations import holds_conversations, read_conversations
from optcore.speculative.stopping import ends_of
from optcore.training.answering import answered
from optcore.training.generate import kept_once, writer_folder, writer_of
from optcore.training.isolation import keeps_documents_apart
from optcore.training.packing import Document, alone, packed_whole
from optcore.training.turns import Talk, Turns, conversation, piece
from optcore.training.windows import Batch

if TYPE_CHECKING:
    from optcore.calibration.text import Texts
    from optcore.run import Run
    from optcore.speculative.target import Target
    from optcore.techniques.data import TrainingData

_BATCH_talks = 32


def written_answers(
    run: "Run", texts: "Texts", data: "TrainingData", documents: Iterable[Document], length: int, wanted: int
) -> Iterator[Batch]:
    """Windows [1, length] of conversations, or of pieces of the documents, that the target answered.

    Batches of answers are kept in the stage's journal: those that a killed process wrote are not written again. An
    answer depends on the seed, on its conversation's number and on the conversations of its batch: on these only by how
    a device rounds. Raises `DataError`, before the target is loaded, where nothing can be asked.
    """
    room = length - len(texts.frame.before)
    is_chat = data.is_own and holds_conversations(run.text_files, data.column)
    turns = _turns(run, texts, data) if is_chat else map(piece, _pieces(documents, data.prompt_tokens, room))
    talks = _talks(run, turns, data, room)
    first = next(talks, None)
    if first is None:
        raise DataError(
            f"no prompt leaves room for an answer in a window of {length} tokens",
            remedy="raise `sequence_length`, lower `prompt_tokens`, or use shorter conversations",
            field="/chain",
        )
    written = _written(run, texts, data, chain((first,), talks), min(_BATCH_talks, wanted))
    is_packed = data.packing and keeps_documents_apart(run.checkpoint)
    return (packed_whole if is_packed else alone)(written, texts.frame.before, length, texts.filler)


def _talks(run: "Run", asked: Iterable[Turns], data: "TrainingData", room: int) -> Iterator[Talk]:
    """Those that have room for an answer; a notice at the first one that has none."""
    is_noted = False
    for number, turns in enumerate(asked):
        talk = Talk(
            turns,
            room,
            _generator(run.seed, number),
            0.0 if _is_greedy(number, data.greedy_share) else data.temperature,
        )
        if talk.prompt:
            yield talk
        elif not is_noted:
            is_noted = True
            run.notice("conversations that begin with a prompt as long as a window are left out")


def _turns(run: "Run", texts: "Texts", data: "TrainingData") -> Iterator[Turns]:
    tokenizer = texts.tokenizer
    chat, ends = ChatFormat(tokenizer), ends_of(writer_folder(run), tokenizer)
    for messages in read_conversations(run.text_files, data.column, "user"):
        yield conversation(chat, tokenizer, messages, ends)


def _pieces(documents: Iterable[Document], size: int, room: int) -> Iterator[list[int]]:
    """Prompts of so many tokens; none where they leave no room: no text is read for nothing."""
    from optcore.training.prepare import first_tokens

    return first_tokens(documents, size) if size < room else iter(())


def _generator(seed: int, number: int) -> torch.Generator:
    """Of one conversation."""
    return torch.Generator().manual_seed(seed_of(seed, number))


def _is_greedy(number: int, share: float) -> bool:
    """Whether this is one of the share, spread evenly over all."""
    return int((number + 1) * share) > int(number * share)


def _written(run: "Run", texts: "Texts", data: "TrainingData", talks: Iterator[Talk], size: int) -> Iterator[Document]:
    """Documents of one batch of conversations after another."""
    target, ends, before = writer_of(run), ends_of(writer_folder(run), texts.tokenizer), texts.frame.before
    for number in count():
        if not (batch := list(islice(talks, size))):
            return
        write = partial(_documents, target, batch, before, data.new_tokens, ends)
        yield from starmap(Document, kept_once(run.records / f"answers-{number:08d}.json", write))


def _documents(
    target: "Target", talks: Sequence[Talk], before: Sequence[int], new_tokens: int | None, ends: frozenset[int]
) -> list[Document]:
    """What a batch of conversations becomes: a first answer to all, a second to those that go on, and so forth."""
    while going := [talk for talk in talks if talk.prompt]:
        questions = [talk.question(before, new_tokens) for talk in going]
        for talk, answer in zip(going, answered(target.model, questions, ends), strict=True):
            talk.go_on(answer)
    return [document for talk in talks for document in talk.documents]
