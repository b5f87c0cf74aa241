"""The source's own predictions on a few windows of text, as files that processes of engines compare with.

Legend: S windows, T tokens, P positions (T, or 1 for classifiers), V vocabulary or labels.
"""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.lib.format import open_memmap

from optcore.calibration.text import Texts
from optcore.errors import OutOfDisk
from optcore.evaluate.positions import only, parts
from optcore.evaluate.walked import Walked
from optcore.streaming.decoder import Decoder

if TYPE_CHECKING:
    from optcore.evaluate.engines import Engines
    from optcore.run import Run

LARGEST_bytes = 1 << 30
"""Of the file of logits."""


class Reference(NamedTuple):
    """Where it lies."""

    tokens: Path
    """Token ids, int64 [S, T]."""
    logits: Path | None
    """Float32 [S, P, V]; None where the source does not answer the result's question."""
    longest: int
    """Tokens that the source holds."""


@torch.no_grad()
def write_reference(run: "Run", evaluator: "Engines") -> Reference:
    """Stream the source in float32, layer by layer, over the held-out text. Raises what reading text and model does."""
    decoder = Decoder(run.source, dtype=torch.float32)
    texts = Texts(run.source, run.calibration, run.data_files)
    tokens_ST = texts.evaluation_windows(evaluator.samples, evaluator.sequence_length, decoder.longest_sequence)
    if not decoder.is_classifier:
        window_bytes = 4 * tokens_ST.shape[1] * decoder.model.config.get_text_config().vocab_size
        tokens_ST = tokens_ST[: max(1, LARGEST_bytes // window_bytes)]
    run.scratch.mkdir(parents=True, exist_ok=True)
    tokens = run.scratch / "tokens.npy"
    np.save(tokens, tokens_ST.numpy())
    if decoder.is_classifier != (run.task == "text-classification"):
        return Reference(tokens, None, decoder.longest_sequence)
    if not decoder.is_classifier:
        _check_disk(run.scratch, len(tokens_ST) * window_bytes)
    logits = run.scratch / "source.npy"
    _write_logits(decoder, tokens_ST, run.scratch, logits)
    return Reference(tokens, logits, decoder.longest_sequence)


def _check_disk(scratch: Path, nbytes: int) -> None:
    """Before the source is walked for them."""
    free = shutil.disk_usage(scratch).free
    if nbytes > free:
        raise OutOfDisk(
            f"the source's logits take {nbytes / 2**20:.0f} MiB, {free / 2**20:.0f} are free in the work folder",
            remedy="free space, or name another folder with --work",
        )


def _write_logits(decoder: Decoder, tokens_ST: torch.Tensor, scratch: Path, out: Path) -> None:
    walked = Walked(decoder, [tokens_ST], scratch)
    for index in range(len(decoder)):
        with decoder.layer(index) as layer:
            walked.advance(index, layer)
    file = None
    for place, state in walked.batches():
        rows, positions = tokens_ST[place.rows].shape
        for part in [slice(0, 1)] if decoder.is_classifier else parts(rows, range(positions)):
            found = decoder.logits(state if decoder.is_classifier else only(state, part)).float().cpu()
            found_BPV = found[:, None] if decoder.is_classifier else found
            if file is None:
                shape = (len(tokens_ST), 1 if decoder.is_classifier else positions, found_BPV.shape[-1])
                file = _mapped(out, shape)
            file[place.rows, part] = found_BPV.numpy()
    assert file is not None
    file.flush()


def _mapped(out: Path, shape: tuple[int, ...]) -> np.memmap:
    """A file of float32 whose blocks are reserved: writing to a mapping of a full disk would be a SIGBUS.

    Raises `OSError` where they do not fit.
    """
    mapped = open_memmap(out, mode="w+", dtype=np.float32, shape=shape)
    with out.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, out.stat().st_size)
    return mapped
