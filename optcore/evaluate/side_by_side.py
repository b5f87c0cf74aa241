"""Source, result and the plain-scale baseline side by side, layer by layer, over the same text.

A result that is quantized on the source's own weights shares its decoder, and every layer is read once for all. Any
other result (other weights, a rotated basis, another depth or width, other conditions) has a decoder of its own.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from optcore.conditional import load_conditional
from optcore.errors import BadCheckpoint
from optcore.evaluate.walked import Place, PlainlyQuantized, Quantized, Walked
from optcore.links import same_weights
from optcore.quantization import load_quantization
from optcore.sources.checkpoint_files import CONFIG
from optcore.streaming.decoder import Decoder, State
from optcore.streaming.simulate import Simulation

if TYPE_CHECKING:
    from optcore.run import Run

Model = Literal["source", "result", "baseline"]
LayerErrors = list[tuple[str, float]]
_SAME_BASIS = 0.5
"""Relative: rotated embeddings are further than 1 from the source's, trained ones stay near."""


class SideBySide:
    """The models of a run. Raises `BadCheckpoint` where source and result do not know the same tokens."""

    def __init__(self, run: "Run", *, has_baseline: bool = True) -> None:
        self._run = run
        self._has_baseline = has_baseline
        self.result = Decoder(run.checkpoint)
        self.source = self.result if _is_same(run.source, run.checkpoint) else Decoder(run.source)
        self._simulation = Simulation(run.checkpoint) if load_quantization(run.checkpoint) else None
        self._walked: dict[Model, Walked] = {}
        _check_vocabulary(self.source, self.result)

    @property
    def longest_sequence(self) -> int:
        """Tokens that the positions of both models reach."""
        return min(self.source.longest_sequence, self.result.longest_sequence)

    @property
    def models(self) -> tuple[Model, ...]:
        """What is compared, the source first; a baseline only where the result is not that itself."""
        return tuple(self._walked)

    def walk(self, tokens: Sequence[torch.Tensor], *, told: bool = False) -> LayerErrors:
        """Take tokens [S, T], a tensor for each length, through all layers of all models.

        Returns the relative error of the result's hidden states after each layer, where layers compare; `told` says
        each as a metric as soon as it is known.
        """
        self._walked = self._start(tokens)
        compare, errors = self._layers_compare(), []
        depth = max(len(self.source), len(self.result))
        for index in range(depth):
            self._advance(index)
            if compare:
                errors.append((self.result.layer_name(index), error := self._error()))
                if told:
                    self._run.metric("layer_error", error, index)
            self._run.progress("evaluating", index + 1, depth)
        return errors

    def batches(self) -> Iterator[tuple[Place, dict[Model, State]]]:
        """After the last layer: every model's states of the same text."""
        for batch in zip(*(walked.batches() for walked in self._walked.values()), strict=True):
            yield batch[0][0], dict(zip(self._walked, (state for _, state in batch), strict=True))

    def logits(self, model: Model, state: State) -> torch.Tensor:
        """What a model predicts from its last hidden states."""
        return self._walked[model].logits(state)

    @property
    def is_one_task(self) -> bool:
        """Whether source and result answer one question: an encoder that was given a classifier's head has no source
        to be compared with."""
        return self.source.is_classifier == self.result.is_classifier

    def _start(self, tokens: Sequence[torch.Tensor]) -> dict[Model, Walked]:
        scratch, simulation = self._run.scratch, self._simulation
        walked: dict[Model, Walked] = {}
        if self.is_one_task:
            walked["source"] = Walked(self.source, tokens, scratch)
        if simulation is None:
            return walked | {"result": Walked(self.result, tokens, scratch)}
        walked["result"] = Quantized(self.result, simulation, tokens, scratch)
        if self._has_baseline and (simulation.description.searched or simulation.description.trained):
            walked["baseline"] = PlainlyQuantized(self.result, simulation, tokens, scratch)
        return walked

    def _advance(self, index: int) -> None:
        for decoder in dict.fromkeys((self.source, self.result)):
            if index < len(decoder):
                with decoder.layer(index) as layer:
                    for walked in self._walked.values():
                        if walked.decoder is decoder:
                            walked.advance(index, layer)

    def _layers_compare(self) -> bool:
        """Before the first layer: as many layers, as wide, and in one basis. A rotated model has another."""
        if not self.is_one_task:
            return False
        shapes = [[states.shape for states in self._walked[model].hidden] for model in ("source", "result")]
        is_alike = len(self.source) == len(self.result) and shapes[0] == shapes[1]
        return is_alike and self._error() < _SAME_BASIS

    def _error(self) -> float:
        source, result = self._walked["source"].hidden, self._walked["result"].hidden
        return _norm(own - states for own, states in zip(result, source, strict=True)) / _norm(source)


def _is_same(source: Path, checkpoint: Path) -> bool:
    """Whether both are run alike with the same weights: a window changes a model without touching any."""
    runs = [(json.loads((folder / CONFIG).read_text()), load_conditional(folder)) for folder in (source, checkpoint)]
    return runs[0] == runs[1] and same_weights(source, checkpoint)


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    """Of all together, one at a time in memory."""
    return float(torch.stack([tensor.norm().float() for tensor in tensors]).norm())


def _check_vocabulary(source: Decoder, result: Decoder) -> None:
    before, after = (decoder.model.config.get_text_config().vocab_size for decoder in (source, result))
    if before != after:
        raise BadCheckpoint(
            f"the result knows {after} tokens and the source {before}, so their predictions do not compare",
            remedy="give both the same tokenizer and vocabulary",
            field="/chain",
        )
