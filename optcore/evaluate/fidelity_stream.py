"""Source, result and the plain-scale baseline side by side, layer by layer, over the same windows of text."""

import filecmp
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from optcore.calibration.text import Texts
from optcore.report import Measurement
from optcore.sizes import weight_files
from optcore.streaming.decoder import Decoder, State
from optcore.streaming.groups import probe_state
from optcore.streaming.hidden import HiddenStates
from optcore.streaming.simulate import Simulation

if TYPE_CHECKING:
    from optcore.evaluate.fidelity import Fidelity
    from optcore.run import Run

Model = Literal["source", "result", "baseline"]
LOGITS_tokens = 512


class Divergence(NamedTuple):
    """Sums over predicted tokens."""

    tokens: int = 0
    negative_log_likelihood: float = 0.0
    """Nats, of the text under this model."""
    kl: float = 0.0
    """Nats, KL(source || this model)."""
    agreements: int = 0
    """Tokens where the most likely prediction is the source's."""

    def plus(self, other: "Divergence") -> "Divergence":
        """Sums over both."""
        return Divergence(
            self.tokens + other.tokens,
            self.negative_log_likelihood + other.negative_log_likelihood,
            self.kl + other.kl,
            self.agreements + other.agreements,
        )

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log likelihood."""
        return math.exp(self.negative_log_likelihood / self.tokens)

    @property
    def mean_kl(self) -> float:
        """Nats a token."""
        return self.kl / self.tokens

    @property
    def agreement(self) -> float:
        """Share of tokens, 0 to 1."""
        return self.agreements / self.tokens


class Comparison:
    """Models that share a decoder's layers while each layer is in memory once.

    Where the chain changed the dense weights before they were quantized, the source has a decoder of its own.
    """

    def __init__(
        self,
        decoder: Decoder,
        source: Decoder,
        simulation: Simulation,
        tokens_ST: torch.Tensor,
        scratch: Path,
        *,
        has_baseline: bool = True,
    ) -> None:
        self.decoder = decoder
        self.source = source
        self.simulation = simulation
        self.tokens_ST = tokens_ST
        models: tuple[Model, ...] = ("source", "result", "baseline")
        if not has_baseline or not simulation.description.searched:
            models = ("source", "result")
        self.states: dict[Model, HiddenStates] = {
            model: HiddenStates(self._decoder_of(model), tokens_ST, scratch) for model in models
        }
        self._probe = probe_state(decoder)

    def advance(self, index: int) -> float | None:
        """Run one layer of every model; the relative error of the result's hidden states, where they compare."""
        cache = self.simulation.cache(index)
        with self.decoder.layer(index) as layer:
            for model, states in self.states.items():
                if self._decoder_of(model) is self.decoder:
                    with self._rounded(model, index, layer):
                        states.advance(index, layer, None if model == "source" else cache)
        if self.source is not self.decoder:
            with self.source.layer(index) as layer:
                self.states["source"].advance(index, layer)
            return None  # a rotated model's states are another basis of the same space
        source, result = self.states["source"].hidden_STH, self.states["result"].hidden_STH
        return float((result - source).norm() / source.norm())

    def _decoder_of(self, model: Model) -> Decoder:
        return self.source if model == "source" else self.decoder

    def divergences(self) -> dict[Model, Divergence]:
        """Every model against the source, after the last layer."""
        sums = dict.fromkeys(self.states, Divergence())
        for batch in zip(*(states.states() for states in self.states.values()), strict=True):
            tokens_BT = self.tokens_ST[batch[0][0]].to(self.decoder.device)
            shift = int(self.decoder.is_causal)  # an encoder predicts the token at its own place
            for part in _parts(tokens_BT, shift):
                next_BP = tokens_BT[:, part.start + shift : part.stop + shift]
                logits = [
                    self._decoder_of(model).logits(_only(state, part))
                    for model, (_, state) in zip(self.states, batch, strict=True)
                ]
                for model, own in zip(self.states, logits, strict=True):
                    sums[model] = sums[model].plus(divergence(logits[0], own, next_BP))
        return sums

    def _rounded(self, model: Model, index: int, layer: nn.Module) -> AbstractContextManager[None]:
        if model == "result":
            return self.simulation.applied(self.decoder, index, layer)
        if model == "baseline":
            return self.simulation.plain(self.decoder, index, layer, self._probe)
        return nullcontext()


def divergence(source_BTV: torch.Tensor, own_BTV: torch.Tensor, next_BT: torch.Tensor) -> Divergence:
    """Compare two models' predictions of the tokens that came next."""
    source, own = (logits.flatten(0, 1).float() for logits in (source_BTV, own_BTV))
    p, q = log_softmax(source, -1), log_softmax(own, -1)
    return Divergence(
        tokens=len(own),
        negative_log_likelihood=cross_entropy(own, next_BT.flatten(), reduction="sum").item(),
        kl=kl_div(q, p, log_target=True, reduction="sum").item(),
        agreements=int((source.argmax(-1) == own.argmax(-1)).sum()),
    )


def _parts(tokens_BT: torch.Tensor, shift: int) -> Iterator[slice]:
    """Positions whose predicted token is known, a few at a time: logits over a large vocabulary outweigh a layer."""
    windows, length = tokens_BT.shape
    size = max(1, LOGITS_tokens // windows)
    for start in range(0, length - shift, size):
        yield slice(start, min(start + size, length - shift))


def _only(state: State, part: slice) -> State:
    return state._replace(hidden_BTH=state.hidden_BTH[:, part])


def compare(run: "Run", samples: int, sequence_length: int) -> tuple[dict[Model, Divergence], list[tuple[str, float]]]:
    """Divergences of the quantized `run.checkpoint`, and the relative error after each layer."""
    decoder = Decoder(run.checkpoint)
    source = decoder if _same_weights(run.source, run.checkpoint) else Decoder(run.source)
    texts = Texts(run.source, run.calibration, run.data_files)
    tokens_ST = texts.evaluation_windows(samples, sequence_length, decoder.longest_sequence)
    comparison = Comparison(decoder, source, Simulation(run.checkpoint), tokens_ST, run.scratch)
    errors = []
    for index in range(len(decoder)):
        error = comparison.advance(index)
        errors += [] if error is None else [(decoder.layer_name(index), error)]
        run.progress("evaluating", index + 1, len(decoder))
    return comparison.divergences(), errors


def _same_weights(source: Path, checkpoint: Path) -> bool:
    """Whether the checkpoint's dense weights are the source's own files: a quantizing stage links them."""
    ours, theirs = weight_files(checkpoint), weight_files(source)
    return len(ours) == len(theirs) and all(
        a.samefile(b) or _equal_bytes(a, b) for a, b in zip(ours, theirs, strict=True)
    )


def _equal_bytes(a: Path, b: Path) -> bool:
    """Where a file system knows no links, weights were copied."""
    return a.stat().st_size == b.stat().st_size and filecmp.cmp(a, b, shallow=False)


def measure_fidelity(run: "Run", evaluator: "Fidelity") -> list[Measurement]:
    """Rows for perplexity, KL and top-1 agreement; leaves the per-layer errors in the run's results."""
    found, errors = compare(run, evaluator.samples, evaluator.sequence_length)
    run.results["layer_errors"] = errors
    tokens = found["source"].tokens
    note = f"over {tokens} held-out tokens"

    def row(name: str, title: str, unit: str, better: Literal["lower", "higher"], *, of_source: bool) -> Measurement:
        values = {model: getattr(value, name) for model, value in found.items()}
        return Measurement(
            name=name,
            title=title,
            unit=unit,
            source=values["source"] if of_source else None,
            baseline=values.get("baseline"),
            result=values["result"],
            better=better,
            note=note,
        )

    return [
        row("perplexity", "Perplexity", "", "lower", of_source=True),
        row("mean_kl", "KL to the source", "nats/token", "lower", of_source=False),
        row("agreement", "Top-1 agreement with the source", "share", "higher", of_source=False),
    ]
