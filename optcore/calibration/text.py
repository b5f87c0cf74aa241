"""Windows of token ids cut from text, for calibration and for evaluation, which never share a window."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from optcore.calibration import stdlib
from optcore.errors import BadCheckpoint, DataError
from optcore.references import BUILT_IN, Calibration
from optcore.sources import read_texts


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
        return self._windows(self._documents("train"), wanted.samples, length, "calibration")

    def evaluation_windows(self, samples: int, length: int, longest: int) -> torch.Tensor:
        """Token ids [samples, T] outside the calibration set: the held-out split, or the text after it."""
        length = min(length, longest)
        if self.calibration.dataset == BUILT_IN and not self.calibration.path:
            return self._windows(self._documents("test"), samples, length, "evaluation")
        used = self.calibration.samples * min(self.calibration.sequence_length, longest)
        ids = islice(self._token_ids(self._documents("train")), used, None)
        return _cut(ids, samples, length, "evaluation")

    def _windows(self, documents: Iterable[str], samples: int, length: int, use: str) -> torch.Tensor:
        return _cut(self._token_ids(documents), samples, length, use)

    def _documents(self, split: stdlib.Split) -> Iterator[str]:
        if self.calibration.dataset == BUILT_IN and not self.calibration.path:
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
