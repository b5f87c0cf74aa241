"""Training windows made of what a recipe names: documents, conversations, random tokens, or what a teacher writes."""

from collections.abc import Iterable, Iterator
from itertools import count, islice
from typing import TYPE_CHECKING

import torch

from optcore.calibration.chat import ChatFormat
from optcore.calibration.text import Texts
from optcore.errors import DataError
from optcore.held_out import share_text
from optcore.sources.conversations import read_conversations
from optcore.training.packing import Document, packed
from optcore.training.window_facts import WindowFacts
from optcore.training.windows import BEGINS, LEARNED, Batch, WindowWriter

if TYPE_CHECKING:
    from optcore.references import Calibration
    from optcore.run import Run
    from optcore.stage import DataWork
    from optcore.techniques.data import TrainingData

_RANDOM_windows = 64
_LARGEST_validation = 0.2
"""Share of the windows, where there are few."""


def prepare_windows(run: "Run", work: "DataWork") -> WindowFacts:
    """Write the windows of a training stage to `run.out`.

    Raises `DataError` where there is text for none, or nothing in it to learn or to measure on.
    """
    data, wanted, length = work.data, work.training + work.validation, work.sequence_length
    writer, learned = WindowWriter(run.out, length), _Learned()
    for batch in _batches(run, data, length, wanted):
        part = batch.first(wanted - writer.written)
        learned.see(part, writer.written)
        writer.append(part)
        run.progress("calibrating", writer.written, wanted)
        if writer.written == wanted:
            break
    _check(writer.written, length)
    if writer.written < wanted:
        run.notice(f"training data: {writer.written} windows of {length} tokens, {wanted} were asked for")
    validation = min(work.validation, max(1, int(writer.written * _LARGEST_validation)))
    learned.check(writer.written - validation)
    return writer.finish(data.kind, validation, run.seed)


class _Learned:
    """The first and the last window of which anything is learned."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.last = -1

    def see(self, batch: Batch, start: int) -> None:
        """Windows from number `start` on."""
        counts_BT = (batch.flags_BT & (LEARNED | BEGINS)) == LEARNED
        found = [start + row for row in counts_BT.any(1).nonzero().flatten().tolist()]
        if batch.labels_B is not None:
            found = list(range(start, start + len(batch.labels_B)))
        if found:
            self.first, self.last = found[0] if self.first is None else self.first, found[-1]

    def check(self, training: int) -> None:
        """Raise `DataError` where the first `training` windows, or those behind them, have nothing to learn."""
        if self.first is None or self.first >= training:
            raise _nothing_learned("train", "use more text, or a longer sequence_length")
        if self.last < training:
            raise _nothing_learned("measure progress", "raise `validation.samples`, or use more text")


def _nothing_learned(use: str, remedy: str) -> DataError:
    message = f"no token of the windows to {use} on is to be learned"
    return DataError(message, remedy=remedy, field="/chain")


def _check(written: int, length: int) -> None:
    if written < 2:
        raise DataError(
            f"the training data fills {written} windows of {length} tokens; one to train on, one to measure on",
            remedy="use more text, or a shorter sequence_length",
            field="/chain",
        )


def _batches(run: "Run", data: "TrainingData", length: int, wanted: int) -> Iterator[Batch]:
    texts = Texts(run.checkpoint, _reference(run, data), run.text_files)
    if data.kind == "labelled":
        from optcore.training.labelled import labelled

        return labelled(run, texts.tokenizer, data, length, wanted)
    if data.kind == "random":
        return _random(texts, length, wanted, run.seed)
    if data.kind == "answers":
        from optcore.training.written_answers import written_answers

        return written_answers(run, texts, data, _documents(texts, run, data), length, wanted)
    if data.kind == "generated":
        from optcore.training.generate import generated

        prompts = _documents(texts, run, data) if data.prompt_tokens else iter(())
        return generated(run, texts, data, prompts, length, wanted)
    if data.packing and not texts.frame.after and _is_apart(run):
        return packed(_documents(texts, run, data), texts.frame.before, length, texts.filler)
    return _cut(texts, run, data, length)


def _reference(run: "Run", data: "TrainingData") -> "Calibration":
    """The text source as `Texts` takes it: the recipe's own, or the stage's."""
    if not data.is_own:
        return run.calibration
    named = {name: getattr(data, name) for name in ("dataset", "revision", "subset", "column", "path")}
    if not _is_whole(run, data):
        named["column"] = data.column or run.calibration.column  # what is held out is counted in the same text
    return run.calibration.model_copy(update={**named, "dataset": data.dataset or ""})


def _documents(texts: Texts, run: "Run", data: "TrainingData") -> Iterator[Document]:
    if data.kind == "chat":
        chat = ChatFormat(texts.tokenizer)
        for messages in read_conversations(run.text_files, data.column):
            spoken = chat.spoken(messages)
            yield Document(spoken.ids, spoken.is_assistant)
    else:
        yield from map(Document, texts.training_documents(whole=_is_whole(run, data)))


def _is_whole(run: "Run", data: "TrainingData") -> bool:
    """Whether nothing of the text is held out for evaluation."""
    return data.is_own and not share_text(run.text_files, run.data_files)


def _is_apart(run: "Run") -> bool:
    """Whether documents of one window would not see each other; a notice where they would."""
    from optcore.training.isolation import keeps_documents_apart

    if keeps_documents_apart(run.checkpoint):
        return True
    run.notice("windows are pieces of the text as it comes: documents in one window would not be apart for this model")
    return False


def _cut(texts: Texts, run: "Run", data: "TrainingData", length: int) -> Iterator[Batch]:
    """Windows of the text as it comes, each in the tokenizer's frame: what encoders are given."""
    before, after = texts.frame
    inside = length - len(before) - len(after)
    documents = _documents(texts, run, data)
    tokens = (pair for document in documents for pair in zip(document.ids, document.flags, strict=True))
    while len(text := list(islice(tokens, inside))) == inside:
        ids, learned = zip(*text, strict=True)
        flags = [0] * len(before) + [*learned] + [0] * len(after)
        flags[0] |= BEGINS
        yield _one([*before, *ids, *after], flags)


def _random(texts: Texts, length: int, wanted: int, seed: int) -> Iterator[Batch]:
    """Windows of tokens drawn alike from the vocabulary, each behind what the tokenizer puts before a text."""
    generator = torch.Generator().manual_seed(seed)
    before = torch.tensor(texts.frame.before, dtype=torch.long)
    flags_T = torch.full((length,), LEARNED, dtype=torch.uint8)
    flags_T[: len(before)] = 0
    flags_T[0] |= BEGINS
    for _ in range(0, wanted, _RANDOM_windows):
        drawn = torch.randint(0, texts.vocabulary, (_RANDOM_windows, length - len(before)), generator=generator)
        tokens = torch.cat((before.expand(_RANDOM_windows, -1), drawn), 1)
        yield Batch(tokens, flags_T.expand(_RANDOM_windows, -1))


def _one(tokens: list[int], flags: list[int]) -> Batch:
    return Batch(torch.tensor([tokens]), torch.tensor([flags], dtype=torch.uint8))


def first_tokens(documents: Iterable[Document], size: int) -> Iterator[list[int]]:
    """Prompts: pieces of `size` tokens, from everywhere in the documents."""
    for document in documents:
        for start in count(0, 8 * size):
            piece = document.ids[start : start + size]
            if len(piece) < size:
                break
            yield piece
