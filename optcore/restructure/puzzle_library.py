"""Every variant of every part of the layers, and what each costs the model when it takes the part's place.

One walk: a layer in memory makes its variants from what the whole model gives it, and takes the variants of all layers
before it one step further. So each layer is read once, whatever the depth, and scores by KL hold the hidden states of
the scored windows once for each variant, on disk when they are large.

Legend: V variants, S windows, T tokens, H hidden size, P channels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from optcore.algorithms.refit import refitted
from optcore.calibration.statistics import Observer
from optcore.calibration.text import Texts
from optcore.restructure.activity import Measured, measure
from optcore.restructure.choice import best
from optcore.restructure.left_out import mean_divergences
from optcore.restructure.puzzle_parts import Part, Parts
from optcore.restructure.slices import Slices
from optcore.restructure.width_plan import Plan
from optcore.streaming.hidden import HiddenStates, IN_MEMORY_bytes, allocate
from optcore.streaming.simulate import rounded
from optcore.training.block_loop import relative_errors

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.streaming.decoder import Decoder
    from optcore.techniques.puzzle import Puzzle


class Variant(NamedTuple):
    """A part, and how much of it stays."""

    part: Part
    share: float


class Library:
    """What becomes of a layer's parameters with a variant. Solved weights wait in files below `folder`."""

    def __init__(self, decoder: "Decoder", folder: Path) -> None:
        self.decoder = decoder
        self._folder = folder
        self._ranked: dict[Part, tuple[torch.Tensor, ...]] = {}

    def rank(self, part: Part, measured: Measured) -> None:
        """Order the part's channels, while its layer is in memory: their size on the text times their column's norm."""
        find = self.decoder.model.get_parameter
        norms = [find(f"{unit.reader}.weight").double().norm(dim=0).cpu() for unit in part.units]
        sizes = [measured.inputs[unit.reader].score_P(unit.parts) for unit in part.units]
        self._ranked[part] = tuple(norm_P * size_P for norm_P, size_P in zip(norms, sizes, strict=True))

    def solve(self, variant: Variant, grams: Mapping[str, torch.Tensor | None], damping: float) -> None:
        """Find the weights that read the channels which stay, while the layer is in memory."""
        solved: dict[str, torch.Tensor] = {}
        for unit, kept_P in zip(variant.part.units, self.kept(variant), strict=True):
            gram_PP, weight = grams[unit.reader], f"{unit.reader}.weight"
            if gram_PP is not None and 0 < len(kept_P) < unit.parts:
                weight_NP = self.decoder.model.get_parameter(weight).data
                solved[weight] = refitted(weight_NP, gram_PP, kept_P, damping).float().cpu()
        self._folder.mkdir(parents=True, exist_ok=True)
        save_file(solved, self._file(variant))

    def kept(self, variant: Variant) -> list[torch.Tensor]:
        """By unit of the part, the channels that stay, in rising order."""
        counts, ranked = variant.part.counts(variant.share), self._ranked.get(variant.part, ())
        return [best(scores_P, count, 1) for scores_P, count in zip(ranked, counts, strict=True)]

    def slices(self, variants: Sequence[Variant]) -> Slices:
        """What the variants of a layer leave of its parameters."""
        chosen = [variant for variant in variants if variant.share < 1]
        units = [unit for variant in chosen for unit in variant.part.units]
        kept = [kept_P for variant in chosen for kept_P in self.kept(variant)]
        changed: dict[str, torch.Tensor] = {}
        for variant in chosen:
            if variant.share == 0:
                shapes = {name: self.decoder.model.get_parameter(name).shape for name in variant.part.ends}
                changed |= {name: torch.zeros(shape) for name, shape in shapes.items()}
            elif self._file(variant).exists():
                changed |= load_file(self._file(variant))
        return Slices(self.decoder, units, kept, changed)

    def parameters(self, variant: Variant, layer: nn.Module) -> dict[str, torch.Tensor]:
        """Those of the layer that a variant changes, by path in it, in full shape: what goes is zero."""
        prefix, slices = f"{self.decoder.layer_name(variant.part.index)}.", self.slices([variant])
        paths = [name.removeprefix(prefix) for name in sorted(variant.part.touched)]
        found = {path: layer.get_parameter(path).data.clone() for path in paths}
        for path, tensor in found.items():
            slices.mask(f"{prefix}{path}", tensor)
        return found

    def _file(self, variant: Variant) -> Path:
        return self._folder / f"{variant.part.index:05d}-{variant.share:.6f}.safetensors"


Scores = dict[Variant, float]


@torch.no_grad()
def build(
    run: "Run", decoder: "Decoder", parts: Parts, shares: Mapping[Part, Sequence[float]], technique: "Puzzle"
) -> tuple[Library, Scores]:
    """The variants of `shares`, and with `choice: ilp` their scores; whole parts cost nothing and are in neither."""
    library = Library(decoder, run.scratch / "puzzle-library")
    units = [unit for part in parts.kind("ffn") for unit in part.units]
    walk = _Walk(run, decoder, library, technique)
    wanted = [Variant(part, share) for part in parts.parts for share in shares[part] if share < 1]
    # The states of all variants are many: what does not fit is refused before the first pass over the text.
    judges = _Judge(walk.windows_ST, wanted, run, decoder, technique) if technique.choice == "ilp" else None
    measured = measure(run, decoder, Plan({}, units))
    for index in range(len(decoder)):
        own = [variant for variant in wanted if variant.part.index == index]
        with decoder.layer(index) as layer:
            for part in parts.of(index):
                library.rank(part, measured)
            walk.past(index, layer, own)
            if judges:
                judges.past(index, layer, own, library)
        run.progress("searching", index + 1, len(decoder))
    return library, judges.scores() if judges else {}


class _Walk:
    """The whole model's states of the calibration set; solves for weights on the way."""

    def __init__(self, run: "Run", decoder: "Decoder", library: Library, technique: "Puzzle") -> None:
        self._technique, self._library = technique, library
        # `measure` said already where there are fewer windows than asked for
        self.windows_ST = Texts(run.source, run.calibration, run.data_files).calibration_windows(
            decoder.longest_sequence
        )
        self._states = HiddenStates(decoder, self.windows_ST, run.scratch) if technique.refit else None

    def past(self, index: int, layer: nn.Module, variants: Sequence[Variant]) -> None:
        """Solve for the layer's variants, and go on."""
        if self._states is None:
            return
        solvable = [variant for variant in variants if variant.part.units and variant.share]
        readers = [unit.reader for variant in solvable[:1] for unit in variant.part.units]
        prefix = f"{self._library.decoder.layer_name(index)}."
        observer = Observer(layer, [[reader.removeprefix(prefix)] for reader in readers], gram=True)
        with observer.measuring():
            self._states.advance(index, layer)
        grams = {f"{prefix}{path}": found.gram_KK for (path,), found in observer.finished().items()}
        for variant in solvable:
            self._library.solve(variant, grams, self._technique.damping)


class _Judge:
    """Scores of variants, each by itself in a model that is whole otherwise."""

    def __init__(
        self,
        windows_ST: torch.Tensor,
        wanted: Sequence[Variant],
        run: "Run",
        decoder: "Decoder",
        technique: "Puzzle",
    ) -> None:
        self._wanted = wanted
        self._states = HiddenStates(decoder, windows_ST[: technique.score_samples], run.scratch)
        self._local = dict.fromkeys(wanted, 0.0)
        self._by_kl = technique.score == "kl"
        shape = (len(wanted) if self._by_kl else 1, *self._states.hidden_STH.shape)
        self._hidden_VSTH = allocate(shape, decoder.dtype, run.scratch, IN_MEMORY_bytes)
        self._open = 0

    def past(self, index: int, layer: nn.Module, variants: Sequence[Variant], library: Library) -> None:
        """Take what is open through the layer, then let its own variants take its place. They come in order."""
        for hidden_STH in self._hidden_VSTH[: self._open]:
            self._states.through(index, layer, hidden_STH, hidden_STH)
        before_STH = self._states.copy()
        self._states.advance(index, layer)
        for variant in variants:
            into_STH = self._hidden_VSTH[self._open if self._by_kl else 0]
            with rounded(layer, {}, library.parameters(variant, layer)):
                self._states.through(index, layer, before_STH, into_STH)
            errors_ST = relative_errors(into_STH, self._states.hidden_STH)
            self._local[variant] = float(errors_ST.double().mean())
            self._open += self._by_kl

    def scores(self) -> Scores:
        """By variant, after the last layer: mean KL in nats a token, or mean relative error of its layer's output."""
        if not self._by_kl:
            return self._local
        return dict(zip(self._wanted, mean_divergences(self._states, self._hidden_VSTH), strict=True))
