"""Fidelity by position and copying over a distance, measured in one walk through the layers.

Legend: S windows, T tokens, N tokens to copy.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch

from optcore.calibration.text import Texts
from optcore.evaluate.divergence import Divergence
from optcore.evaluate.fidelity_stream import divergences
from optcore.evaluate.side_by_side import Model, SideBySide
from optcore.report import Measurement

if TYPE_CHECKING:
    from optcore.evaluate.long_context import LongContext
    from optcore.run import Run

_FIRST = 16
"""Where the far copy stands: behind any sinks."""


class Copy(NamedTuple):
    """Texts that end with a repetition."""

    name: str
    distance: int
    """Tokens from the first copy to the second."""
    tokens_ST: torch.Tensor


def measure_long_context(run: "Run", evaluator: "LongContext") -> list[Measurement]:
    """Rows for each range of positions and for each distance of copying; a notice where nothing lies beyond."""
    models = SideBySide(run, has_baseline=False)
    texts = Texts(run.source, run.calibration, run.data_files)
    tokens_ST = texts.evaluation_windows(evaluator.samples, evaluator.sequence_length, models.longest_sequence)
    length = tokens_ST.shape[1]
    copies = _copies(tokens_ST, evaluator, texts.vocabulary, run.seed)
    if not any(copy.name == "beyond" for copy in copies):
        run.notice(f"texts of {length} tokens hold nothing beyond a window of {evaluator.window}")
    models.walk([tokens_ST, *(copy.tokens_ST for copy in copies)])
    rows = [
        row
        for name, positions in position_ranges(length, evaluator.window)
        for row in _fidelity_rows(name, positions, divergences(models, tokens_ST, positions=positions))
    ]
    for group, copy in enumerate(copies, start=1):
        repeated = range(length - evaluator.span, length - 1)  # the first repeated token cannot be known
        rows += _copy_rows(copy, divergences(models, copy.tokens_ST, group, repeated))
    return rows


def position_ranges(length: int, window: int) -> list[tuple[str, range]]:
    """Positions whose next token is predicted from a window, from up to two, and from more; those that there are."""
    ends = (0, window, 2 * window, length)
    names = ("within", "beyond", "far_beyond")
    ranges = zip(names, ends, ends[1:], strict=False)
    clipped = ((name, range(start, min(stop, length - 1))) for name, start, stop in ranges)
    return [(name, positions) for name, positions in clipped if positions]


def repeated(tokens_ST: torch.Tensor, spans_SN: torch.Tensor, distance: int) -> torch.Tensor:
    """Texts [S, T] with a span at the end, and the same span `distance` tokens before."""
    count, end = spans_SN.shape[1], tokens_ST.shape[1]
    made_ST = tokens_ST.clone()
    made_ST[:, end - count :] = spans_SN
    made_ST[:, end - count - distance : end - distance] = spans_SN
    return made_ST


def _copies(tokens_ST: torch.Tensor, evaluator: "LongContext", vocabulary: int, seed: int) -> list[Copy]:
    count, length = evaluator.span, tokens_ST.shape[1]
    generator = torch.Generator().manual_seed(seed)
    spans_SN = torch.randint(vocabulary, (len(tokens_ST), count), generator=generator)
    furthest = length - count - _FIRST
    near = min(max(count, evaluator.window // 2), furthest)
    distances = {"within": near} if near >= count and near + count <= evaluator.window else {}
    if furthest > evaluator.window + count:
        distances["beyond"] = furthest
    return [Copy(name, distance, repeated(tokens_ST, spans_SN, distance)) for name, distance in distances.items()]


def _fidelity_rows(name: str, positions: range, found: dict[Model, Divergence]) -> list[Measurement]:
    source, result = found["source"], found["result"]
    where, note = f"tokens {positions.start}-{positions.stop - 1}", f"over {source.tokens} held-out tokens"
    return [
        Measurement(
            name=f"mean_kl_{name}",
            title=f"KL at {where}",
            unit="nats/token",
            source=None,
            result=result.mean_kl,
            better="lower",
            note=note,
        ),
        Measurement(
            name=f"perplexity_{name}",
            title=f"Perplexity at {where}",
            source=source.perplexity,
            result=result.perplexity,
            better="lower",
            note=note,
        ),
    ]


def _copy_rows(copy: Copy, found: dict[Model, Divergence]) -> list[Measurement]:
    source, result = found["source"], found["result"]
    title, note = f"Copying from {copy.distance} tokens back", f"{source.tokens} random tokens, teacher-forced"
    return [
        Measurement(
            name=f"copy_accuracy_{copy.name}",
            title=title,
            unit="share",
            source=source.hits / source.tokens,
            result=result.hits / result.tokens,
            better="higher",
            note=note,
        ),
        Measurement(
            name=f"copy_loss_{copy.name}",
            title=f"{title}, loss",
            unit="nats/token",
            source=source.negative_log_likelihood / source.tokens,
            result=result.negative_log_likelihood / result.tokens,
            better="lower",
            note=note,
        ),
    ]
