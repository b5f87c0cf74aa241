"""Windows of token ids cut from text, for calibration and for evaluation, which never share a window.

A window is what the model would be given: it begins with the tokens that the tokenizer itself puts before a text (BOS
for Llama 3, Gemma and Mistral, [CLS] for BERT; nothing for many others) and ends with an encoder's separator.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from optcore.calibration import stdlib
from optcore.errors import BadCheckpoint, DataError
from optcore.out_of_memory import is_out_of_memory
from optcore.references import Calibration
from optcore.sources.texts import read_texts

BLOCK_tokens = 2048
_LOOKED_AT_windows = 8


class Frame(NamedTuple):
    """Token ids around every window."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


class Texts:
    """The recipe's data set with the model's tokenizer."""

    def __init__(self, model: Path, calibration: Calibration, files: tuple[Path, ...]) -> None:
        self.calibration = calibration
        self.files = files
        self.tokenizer = _tokenizer(model)
        self.frame = frame_of(self.tokenizer)
        self._vocabulary = _vocabulary(model)

    @property
    def vocabulary(self) -> int:
        """Tokens that both tokenizer and model know."""
        return min(len(self.tokenizer), self._vocabulary or len(self.tokenizer))

    @property
    def filler(self) -> int:
        """A token for places that nobody looks at."""
        return filler_of(self.tokenizer)

    def calibration_windows(self, longest: int) -> torch.Tensor:
        """Token ids [samples, T] to measure activations on, T cut to what the model holds (`longest`)."""
        return self._calibration(self.calibration.samples, longest)

    def later_windows(self, skipped: int, samples: int, length: int) -> torch.Tensor:
        """Token ids [samples, length] behind the first `skipped` tokens of the text for calibration and training."""
        return self._cut(islice(self._share("calibration"), skipped, None), samples, length, "a comparison")

    def evaluation_windows(self, samples: int, length: int, longest: int) -> torch.Tensor:
        """Token ids [samples, T] outside the calibration set: the held-out split, or the text after it."""
        length = min(length, longest)
        ids = self._token_ids(self._documents("test")) if self.calibration.is_built_in else self._share("evaluation")
        return self._cut(ids, samples, length, "evaluation")

    def check(self, longest: int, evaluations: Iterable[int] = ()) -> None:
        """Cut a few windows of calibration and of evaluations (lengths), so that what is wrong is said before any work.

        Raises `DataError` for too little text, `BadCheckpoint` for a tokenizer that does not match the model.
        """
        self._calibration(_LOOKED_AT_windows, longest)
        for length in evaluations:
            self.evaluation_windows(_LOOKED_AT_windows, length, longest)

    def _calibration(self, samples: int, longest: int) -> torch.Tensor:
        length = min(self.calibration.sequence_length, longest)
        return self._cut(self._share("calibration"), samples, length, "calibration")

    def training_documents(self, *, whole: bool) -> Iterator[list[int]]:
        """Token ids of one document after another, each ended; unless `whole`, without evaluation's share of them."""
        documents = self._documents("train")
        if whole or self.calibration.is_built_in:
            return (list(self._ended(text)) for text in documents)
        return self._parts(documents, "training")

    def _share(self, use: str) -> Iterator[int]:
        documents = self._documents("train")
        if self.calibration.is_built_in:
            return self._token_ids(documents)
        return chain.from_iterable(self._parts(documents, use))

    def _parts(self, documents: Iterable[str], use: str) -> Iterator[list[int]]:
        """One block in four of a data set without a held-out split is for evaluation, whatever its size."""
        seen = 0
        for text in documents:
            ids, start = list(self._ended(text)), 0
            while start < len(ids):
                number, offset = divmod(seen, BLOCK_tokens)
                part = ids[start : start + BLOCK_tokens - offset]
                seen, start = seen + len(part), start + len(part)
                if (number % 4 == 3) == (use == "evaluation"):
                    yield part

    def _documents(self, split: stdlib.Split) -> Iterator[str]:
        if self.calibration.is_built_in:
            return (document.text for document in stdlib.documents(split))
        return read_texts(self.files, self.calibration.column)

    def _token_ids(self, documents: Iterable[str]) -> Iterator[int]:
        """One stream: documents separated by the end-of-text token."""
        return chain.from_iterable(map(self._ended, documents))

    def _ended(self, text: str) -> Iterator[int]:
        end = self.tokenizer.eos_token_id
        yield from self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if end is not None:
            yield end

    def _cut(self, ids: Iterator[int], samples: int, length: int, use: str) -> torch.Tensor:
        """Windows that share no token of the text, each in its frame."""
        before, after = (torch.tensor(part, dtype=torch.long) for part in self.frame)
        inside = max(1, length - len(before) - len(after))
        flat = list(islice(ids, samples * inside))
        whole = len(flat) // inside
        if not whole:
            raise DataError(
                f"the data set has {len(flat)} tokens left for {use}, less than one window of {length}",
                remedy="use a larger data set, fewer samples or a shorter sequence_length",
                field="/calibration",
            )
        text_ST = torch.tensor(flat[: whole * inside]).view(whole, inside)
        windows_ST = torch.cat((before.expand(whole, -1), text_ST, after.expand(whole, -1)), 1)
        self._check_ids(int(windows_ST.max()))
        return windows_ST

    def _check_ids(self, largest: int) -> None:
        if self._vocabulary and largest >= self._vocabulary:
            raise BadCheckpoint(
                f"the tokenizer gives token {largest}, but the model has embeddings for {self._vocabulary} tokens only",
                remedy="put the tokenizer that belongs to the model into its folder",
                field="/model",
            )


def frame_of(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """What the tokenizer puts around a text of its own accord; at the end only an encoder's separator counts.

    A chat model's end-of-text there would tell a decoder that the window is over.
    """
    text = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a")["input_ids"]
    start = next((i for i in range(len(framed)) if framed[i : i + len(text)] == text), 0)
    after = tuple(framed[start + len(text) :])
    is_encoder = bool(after) and set(after) == {tokenizer.sep_token_id} and tokenizer.cls_token_id is not None
    return Frame(tuple(framed[:start]), after if is_encoder else ())


def filler_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token, or where there is none the end-of-text token."""
    chosen = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id or 0) if chosen is None else int(chosen)


def _vocabulary(model: Path) -> int | None:
    """Rows of the embedding, by the config; the decoder checks that the weights agree."""
    config = json.loads((model / "config.json").read_text())
    found = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    return int(found) if found else None


def _tokenizer(model: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # tokenizers raises nothing more special for a damaged file
        if is_out_of_memory(error):
            raise
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadCheckpoint(
            f"cannot load the tokenizer: {first_line}",
            remedy="the model folder needs tokenizer.json (or the files of its tokenizer)",
            field="/model",
        ) from error
