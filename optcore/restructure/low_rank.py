"""A checkpoint whose linear layers are products of thin factors, written layer by layer, the factors beside it."""

from collections.abc import Iterator
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import nn

from optcore.algorithms.low_rank import factorized, singular_values, whitener
from optcore.algorithms.rank_allocation import Ranks, Shape, check_budget, global_ranks, uniform_ranks
from optcore.calibration.propagate import calibration_windows
from optcore.calibration.reconstruction import lost_share, tell_layer
from optcore.calibration.statistics import Observer
from optcore.errors import RecipeError
from optcore.events import Phase
from optcore.factored import FACTORS, Factored, FactoredTensor
from optcore.links import link_companions
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import fused_groups, probe_state
from optcore.streaming.hidden import HiddenStates
from optcore.streaming.match import is_matched, time_limit, unmatched
from optcore.streaming.rewrite import layer_tensors, write_outside
from optcore.streaming.simulate import module_paths
from optcore.streaming.tensor_file import TensorFile
from optcore.streaming.writer import TensorWriter, name_weights

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.low_rank import LowRank

_SHOWN = 3


@torch.no_grad()
def factorize_checkpoint(run: "Run", technique: "LowRank") -> None:
    """Write the products of `run.checkpoint`'s factors, and the factors, to `run.out`."""
    decoder = Decoder(run.checkpoint, dtype=torch.float32)
    factorization = _Factorization(run, technique, decoder)
    ranks = factorization.ranks()
    factorization.write(ranks)
    link_companions(run.checkpoint, run.out)
    _tell(run, _described(technique, factorization.shapes, ranks))


class _Factorization:
    """The linears of a model, and what goes through them."""

    def __init__(self, run: "Run", technique: "LowRank", decoder: Decoder) -> None:
        self._run, self._technique, self._decoder = run, technique, decoder
        self.shapes = _shapes(decoder, technique)
        check_budget(self.shapes, technique.keep, technique.multiple)
        self._probe = probe_state(decoder)
        self._windows_ST = calibration_windows(run, decoder) if technique.method == "whitened" else None
        self._passes = 2 if technique.allocation == "global" else 1
        self._done = 0
        self._lost: list[torch.Tensor] = []
        """Of each linear of the current layer."""

    def ranks(self) -> Ranks:
        """Decide by the spectra of all layers, of which nothing else is kept, or without looking."""
        keep, multiple = self._technique.keep, self._technique.multiple
        if self._technique.allocation == "uniform":
            return uniform_ranks(self.shapes, keep, multiple)
        spectra: dict[str, torch.Tensor] = {}
        states = self._states()
        for index in range(len(self._decoder)):
            with self._decoder.layer(index) as layer:
                for name, linear, lower_KK in self._linears(index, layer, states):
                    spectra[name] = singular_values(linear.weight.data, lower_KK).cpu()
            self._progress()
        self.shapes = {name: shape for name, shape in self.shapes.items() if name in spectra}
        return global_ranks(self.shapes, spectra, keep, multiple)

    def write(self, ranks: Ranks) -> None:
        """Factorize one layer after the other, and write it."""
        run, decoder, states = self._run, self._decoder, self._states()
        writer, seen = TensorWriter(run.out), set()
        write_outside(decoder, writer, {})
        with TensorFile(run.out / FACTORS, run.scratch) as factors:
            for index in range(len(decoder)):
                with decoder.layer(index, keep_stored=True) as layer:
                    for name, linear, lower_KK in self._linears(index, layer, states):
                        seen.add(name)
                        self._replace(name, linear, lower_KK, ranks.get(name), factors)
                    for stored, tensor in layer_tensors(decoder, index, layer).items():
                        writer.add(stored, tensor)
                tell_layer(run, index, self._lost)
                self._lost.clear()
                self._progress()
            factors.close()
        writer.close()
        if (run.out / FACTORS).exists():
            name_weights(run.out)
        self.shapes = {name: shape for name, shape in self.shapes.items() if name in seen}

    def _replace(
        self, name: str, linear: nn.Linear, lower_KK: torch.Tensor | None, rank: int | None, factors: TensorFile
    ) -> None:
        """Put the product of the factors, as they are stored, into the layer."""
        if rank is None:
            return
        dtype = self._decoder.stored_dtype
        left_NR, right_RK = (factor.to(dtype) for factor in factorized(linear.weight.data, lower_KK, rank))
        factors.add(f"{name}.left", left_NR)
        factors.add(f"{name}.right", right_RK)
        product_NK = left_NR.double() @ right_RK.double()
        mean_square_K = None if lower_KK is None else lower_KK.square().sum(1)
        self._lost.append(lost_share(linear.weight.data, product_NK, mean_square_K))
        linear.weight.data.copy_(product_NK)

    def _states(self) -> HiddenStates | None:
        if self._windows_ST is None:
            return None
        return HiddenStates(self._decoder, self._windows_ST, self._run.scratch)

    def _linears(
        self, index: int, layer: nn.Module, states: HiddenStates | None
    ) -> Iterator[tuple[str, nn.Linear, torch.Tensor | None]]:
        """The layer's linears by name with their inputs' whitener; states go past the layer as it was."""
        paths = module_paths(self._decoder, index, layer)
        groups = fused_groups(self._decoder, index, layer, self._probe)
        observer = Observer(layer, groups, gram=True)
        if states:
            with observer.measuring():
                states.advance(index, layer)
        statistics = observer.finished() if states else {}
        for group in groups:
            chosen = [path for path in group if paths[path] in self.shapes]
            found = statistics.get(tuple(group)) if chosen else None
            lower_KK = None if found is None or found.gram_KK is None else whitener(found.gram_KK)
            for path in chosen:
                linear = layer.get_submodule(path)
                assert isinstance(linear, nn.Linear)
                yield paths[path], linear, lower_KK

    def _progress(self) -> None:
        self._done += 1
        phase: Phase = "calibrating" if self._windows_ST is not None else "searching"
        self._run.progress(phase, self._done, self._passes * len(self._decoder))


def _shapes(decoder: Decoder, technique: "LowRank") -> dict[str, Shape]:
    """Every linear of the layers that is not ignored, known before any is read. Raises `RecipeError` for none."""
    found: dict[str, Shape] = {}
    for index, layer in enumerate(decoder.layers):
        for path, name in module_paths(decoder, index, layer).items():
            linear = layer.get_submodule(path)
            assert isinstance(linear, nn.Linear)
            found[name] = Shape(linear.out_features, linear.in_features)
    with time_limit():
        lost = unmatched(technique.ignore, found)
        chosen = {name: shape for name, shape in found.items() if not is_matched(name, technique.ignore)}
    if lost or not chosen:
        raise RecipeError(
            f"{lost[0]!r} matches no linear layer of the decoder" if lost else "no linear layer is left to factorize",
            remedy="write a module's name as it is in the checkpoint, or a regular expression after `re:`",
            field="/chain",
        )
    return chosen


def _described(technique: "LowRank", shapes: dict[str, Shape], ranks: Ranks) -> Factored:
    before = sum(shape.parameters for shape in shapes.values())
    after = sum(shape.count(ranks[name]) for name, shape in shapes.items())
    tensors = {
        f"{name}.weight": FactoredTensor(
            rank=rank,
            shape=shape,
            parameters_before=shape.parameters,
            parameters_after=shape.count(rank),
        )
        for name, shape in shapes.items()
        if (rank := ranks[name]) is not None
    }
    return Factored(
        method=technique.method,
        allocation=technique.allocation,
        keep=technique.keep,
        kept=after / before,
        parameters_before=before,
        parameters_after=after,
        tensors=tensors,
        whole=tuple(name for name in shapes if ranks[name] is None),
    )


def _tell(run: "Run", found: Factored) -> None:
    """Leave the document, a record and a word about what it is good for."""
    found.save(run.out)
    run.results["low_rank"] = found.model_dump(mode="json", exclude={"note", "version"})
    if ranks := [tensor.rank for tensor in found.tensors.values()]:
        run.notice(
            f"{len(ranks)} linear layers have ranks {min(ranks)} to {max(ranks)} (median {median(ranks):g}): "
            f"{found.kept:.1%} of the parameters are kept, asked {found.keep:.1%}. {found.note}"
        )
    if found.whole:
        names = ", ".join(found.whole[:_SHOWN]) + (" ..." if len(found.whole) > _SHOWN else "")
        run.notice(f"{len(found.whole)} linear layers were left whole, as factors would save nothing: {names}")
