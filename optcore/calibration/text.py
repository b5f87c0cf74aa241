"""Windows of token ids cut from text, for calibration and for evaluation, which never share a window."""

from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from optcore.calibration import stdlib
from optcore.errors import BadCheckpoint, DataError
from optcore.references import BUILT_IN, Calibration
from optcore.sources import read_texts

BLOCK_tokens = 2048


class Texts:
    """The recipe's data set with the model's tokenizer."""

    def __init__(self, model: Path, calibration: Calibration, files: tuple[Path, ...]) -> None:
        self.calibration = calibration
        self.files = files
        self.tokenizer = _tokenizer(model)

    def calibration_windows(self, longest: int) -> torch.Tensor:
        """Token ids [samples, T] to measure activations on, T cut to what the model holds (`longest`)."""
        wanted = self.calibration
        length = min(wanted.sequence_length, longest)
        return _cut(self._share("calibration"), wanted.samples, length, "calibration")

    def _share(self, use: str) -> Iterator[int]:
        """One block in four of a data set without a held-out split is for evaluation, whatever its size."""
        ids = self._token_ids(self._documents("train"))
        if self._is_built_in:
            yield from ids
            return
        for number in count():
            block = list(islice(ids, BLOCK_tokens))
            if not block:
                return
            if (number % 4 == 3) == (use == "evaluation"):
                yield from block

    def evaluation_windows(self, samples: int, length: int, longest: int) -> torch.Tensor:
        """Token ids [samples, T] outside the calibration set: the held-out split, or the text after it."""
        length = min(length, longest)
        if self._is_built_in:
            return _cut(self._token_ids(self._documents("test")), samples, length, "evaluation")
        return _cut(self._share("evaluation"), samples, length, "evaluation")

    @property
    def _is_built_in(self) -> bool:
        return self.calibration.dataset == BUILT_IN and not self.calibration.path

    def _documents(self, split: stdlib.Split) -> Iterator[str]:
        if self._is_built_in:
            return (document.text for document in stdlib.documents(split))
        return read_texts(self.files, self.calibration.column)

    def _token_ids(self, documents: Iterable[str]) -> Iterator[int]:
        """One stream: documents separated by the end-of-text token."""
        end = self.tokenizer.eos_token_id
        for text in documents:
            yield from self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            if end is not None:
                yield end


def _cut(ids: Iterator[int], samples: int, length: int, use: str) -> torch.Tensor:
    flat = list(islice(ids, samples * length))
    whole = len(flat) // length
    if not whole:
        raise DataError(
            f"the data set has {len(flat)} tokens left for {use}, less than one window of {length}",
            remedy="use a larger data set, fewer samples or a shorter sequence_length",
            field="/calibration",
        )
    return torch.tensor(flat[: whole * length]).view(whole, length)


def _tokenizer(model: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BadCheckpoint(
            f"cannot load the tokenizer: {str(error).splitlines()[0]}",
            remedy="the model folder needs tokenizer.json (or the files of its tokenizer)",
            field="/model",
        ) from error
