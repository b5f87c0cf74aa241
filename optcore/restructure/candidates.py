"""Shapes compared: each one cut, its KL to the whole model measured, and the best few again after a short distillation.

What is known of a shape is kept in the stage's journal, so a stage that was killed does not measure it again.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import torch

from optcore.durable import write_settled
from optcore.evaluate.fidelity_stream import divergences
from optcore.evaluate.side_by_side import SideBySide
from optcore.events import AnyEvent, Progress
from optcore.frozen import Frozen
from optcore.links import link_checkpoint
from optcore.restructure.prune import prune_checkpoint
from optcore.restructure.shapes import Shape
from optcore.restructure.width import activity, prune_width
from optcore.sizes import tensor_sizes, weight_files
from optcore.techniques.distill import Distill
from optcore.techniques.prune import Prune

if TYPE_CHECKING:
    from optcore.run import Run


class Candidate(Frozen):
    """What is known of one shape."""

    shape: Shape
    sizes: dict[str, tuple[int, int]]
    """By setting of the configuration, what it was and what it would be."""
    params: int
    bytes: int
    """Of its tensors."""
    kl: float
    """To the whole model as cut, nats a token."""
    distilled_kl: float | None = None
    """The same after the short distillation."""


class Trials:
    """Where shapes of one run are tried. `tokens_ST`: windows to measure on."""

    def __init__(self, run: "Run", technique: Prune, tokens_ST: torch.Tensor) -> None:
        self._run, self._technique, self._tokens_ST = run, technique, tokens_ST

    def cut(self, shapes: Sequence[Shape]) -> list[Candidate]:
        """The KL of each as cut. Shapes of one depth share their layers and one pass over calibration text."""
        found = {shape: known for shape in shapes if (known := self._known("cut", shape))}
        missing = sorted(shape for shape in shapes if shape not in found)
        for depth, group in groupby(missing, key=lambda shape: shape.depth):
            for candidate in self._cut_at(depth, list(group)):
                found[candidate.shape] = candidate
                self._keep("cut", candidate)
                self._run.progress("searching", len(found), len(shapes))
        return [found[shape] for shape in shapes]

    def distilled(self, candidate: Candidate, distill: Distill, windows: Path) -> Candidate:
        """A candidate with its KL after `distill` on prepared windows, the whole model being its teacher."""
        from optcore.training.dense_stage import train_dense

        if known := self._known("distilled", candidate.shape):
            return known
        with self._aside() as inner:
            cut, trained = (_folder(inner, name) for name in ("cut", "trained"))
            prune_checkpoint(replace(inner, out=cut), candidate.shape.asked(self._technique))
            journal = self._run.records / f"distilling-{_name(candidate.shape)}"
            teacher, scratch = self._run.checkpoint, inner.scratch / "training"
            training = replace(
                inner, checkpoint=cut, teacher=teacher, windows=windows, journal=journal, scratch=scratch
            )
            train_dense(replace(training, out=trained, results={}), distill)
            done = candidate.model_copy(update={"distilled_kl": self._kl(inner, trained)})
        self._keep("distilled", done)
        shutil.rmtree(journal)
        return done

    def _cut_at(self, depth: int, shapes: list[Shape]) -> Iterator[Candidate]:
        """Shapes of one depth."""
        most = Shape(depth, *(max(shares) for shares in list(zip(*shapes, strict=True))[1:]))
        with self._aside() as inner:
            if depth:
                shallower = _folder(inner, "shallower")
                prune_checkpoint(replace(inner, out=shallower), Shape(depth).asked(self._technique))
                inner = replace(inner, checkpoint=shallower)
            widest = most._replace(depth=0).asked(self._technique)
            known = activity(inner, widest) if widest.cuts else None
            for shape in shapes:
                cut, results = _folder(inner, "cut"), dict[str, object]()
                asked = shape._replace(depth=0).asked(self._technique)
                if asked.cuts:
                    prune_width(replace(inner, out=cut, results=results), asked, known)
                else:
                    link_checkpoint(inner.checkpoint, cut)
                width = results.get("width", {"sizes": {}})
                assert isinstance(width, dict)
                params, nbytes = written(cut)
                kl = self._kl(inner, cut)
                yield Candidate(shape=shape, sizes=width["sizes"], params=params, bytes=nbytes, kl=kl)
                shutil.rmtree(cut)

    def _kl(self, inner: "Run", folder: Path) -> float:
        """Mean KL from the whole model, nats a token."""
        models = SideBySide(replace(inner, source=self._run.checkpoint, checkpoint=folder), has_baseline=False)
        models.walk([self._tokens_ST])
        return divergences(models, self._tokens_ST)["result"].mean_kl

    @contextmanager
    def _aside(self) -> Iterator["Run"]:
        """A run whose notices and results are nobody's, in a folder that goes with it."""

        def tell(event: AnyEvent) -> None:
            if isinstance(event, Progress):
                self._run.emit(event)

        self._run.scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(dir=self._run.scratch))
        try:
            yield replace(self._run, scratch=folder, out=folder / "out", emit=tell, results={})
        finally:
            shutil.rmtree(folder)

    def _known(self, kind: str, shape: Shape) -> Candidate | None:
        path = self._run.records / f"{kind}-{_name(shape)}.json"
        return Candidate.model_validate_json(path.read_text()) if path.exists() else None

    def _keep(self, kind: str, candidate: Candidate) -> None:
        path = self._run.records / f"{kind}-{_name(candidate.shape)}.json"
        write_settled(path, candidate.model_dump_json())


def written(folder: Path) -> tuple[int, int]:
    """Elements and bytes of all tensors of a checkpoint."""
    sizes = [size for path in weight_files(folder) for size in tensor_sizes(path).values()]
    return sum(elements for elements, _ in sizes), sum(nbytes for _, nbytes in sizes)


def _name(shape: Shape) -> str:
    """For files; no dots, behind which endings are looked for."""
    return "-".join(f"{1_000_000 * share:.0f}" for share in shape)


def _folder(run: "Run", name: str) -> Path:
    folder = run.scratch / name
    folder.mkdir()
    return folder
