"""Channel scales that move magnitude from a layer's input into its weights: x / s and W * s, with s [K] positive.

Everything is computed from the weights W [N, K] and the statistics of their inputs: H = X^T X / tokens [K, K] and the
largest magnitude of each channel. Nothing runs the layer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import torch

from optcore.algorithms.codes import fake_quantize
from optcore.algorithms.noise import input_noise
from optcore.algorithms.scale_search import Method
from optcore.algorithms.scales import find_scales
from optcore.schemes import Scheme

_LARGEST = 1e4
_STEPS = 20
# The error of rounded inputs is a model's: a smaller gain than this was found to be a loss half of the time.
_MODELLED = 0.95
_SAMPLED_rows = 128

Tie = Callable[[torch.Tensor], torch.Tensor]
"""Scales [K] to the nearest that what comes before can take (`Fold.tie`)."""
Family = Callable[[float], torch.Tensor]
"""Scales [K] by a ratio from 0 to 1: how much of the input's magnitude they take away."""


class Statistics(Protocol):
    """What is known of an input."""

    tokens: int
    channel_amax_K: torch.Tensor
    gram_KK: torch.Tensor | None


class Consumer(NamedTuple):
    """A fused group of weights (float32 [N_i, K]) and the input that they share.

    A norm before experts has one consumer per expert, each with its own statistics; all take the same s.
    """

    weights: Sequence[torch.Tensor]
    found: Statistics

    @property
    def square_K(self) -> torch.Tensor:
        """Mean square of each input channel."""
        assert self.found.gram_KK is not None
        return self.found.gram_KK.diagonal()


class Smoothing(NamedTuple):
    """Chosen scales, and what they are expected to be worth."""

    scale_K: torch.Tensor
    loss: float
    """Expected squared error of the layer's output a token, weights and inputs rounded."""
    plain_loss: float
    """The same without smoothing."""


def smoothquant_scales(consumers: Sequence[Consumer], alpha: float) -> torch.Tensor:
    """s = amax(x)^alpha / amax(w)^(1 - alpha) per channel (SmoothQuant, arXiv:2211.10438, equation 4).

    Amax is over all consumers. A channel without any input or weight gets 1, and everything stays within 1e-4 to 1e4.
    """
    seen = [consumer for consumer in consumers if consumer.found.tokens]
    if not seen:
        return _ones(consumers)
    inputs_K = torch.stack([consumer.found.channel_amax_K for consumer in seen]).amax(0)
    weights_K = torch.stack([weight.abs().amax(0) for consumer in consumers for weight in consumer.weights]).amax(0)
    return balance(inputs_K, weights_K, alpha, 1 - alpha)


def smoothquant_search(
    consumers: Sequence[Consumer], scheme: Scheme, dtype: torch.dtype, tie: Tie, method: Method
) -> Smoothing:
    """SmoothQuant with the alpha of 0, 0.05 .. 1 that has the least expected output error (`alpha: auto`)."""
    family = partial(smoothquant_scales, consumers)
    return search([family], consumers, scheme, dtype, tie, method)


def balance(inputs_K: torch.Tensor, weights_K: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """inputs^alpha / weights^beta, 1 where either is zero, within 1e-4 to 1e4."""
    scale_K = inputs_K.float() ** alpha / weights_K.float() ** beta
    live_K = (inputs_K > 0) & (weights_K > 0) & scale_K.isfinite()
    return torch.where(live_K, scale_K.clamp(1 / _LARGEST, _LARGEST), 1.0)


def search(
    families: Sequence[Family],
    consumers: Sequence[Consumer],
    scheme: Scheme,
    dtype: torch.dtype,
    tie: Tie,
    method: Method,
) -> Smoothing:
    """The member with the least expected error, tied; ones unless it beats them on the whole weights.

    Each family is searched on ratios 0, 0.05 .. 1: every fourth, then twice between the best one and its neighbours.
    Members are compared on about 128 rows of each consumer (rows only meet in the scale of a tensor or tile), so each
    costs 2 * 128 * K^2 operations. `method` must be how the weight scales will be found afterwards: what is best for
    plain maxima can be worse than nothing for searched scales.
    """
    seen = [consumer for consumer in consumers if consumer.found.tokens and consumer.found.gram_KK is not None]
    plain_K = _ones(consumers)
    if not seen:
        return Smoothing(plain_K, 0.0, 0.0)
    sampled = [_sampled(consumer) for consumer in seen]

    def errors_of(scales: Sequence[torch.Tensor]) -> list[float]:
        return output_errors(sampled, scales, scheme, dtype, method)

    best_K = min((_best_member(family, tie, errors_of) for family in families), key=lambda found: found[1])[0]
    plain, loss = output_errors(seen, (plain_K, best_K), scheme, dtype, method)
    needed = plain if scheme.activations is None else _MODELLED * plain
    return Smoothing(best_K, loss, plain) if loss < needed else Smoothing(plain_K, plain, plain)


def _best_member(
    family: Family, tie: Tie, errors_of: Callable[[Sequence[torch.Tensor]], list[float]]
) -> tuple[torch.Tensor, float]:
    tried: dict[int, tuple[torch.Tensor, float]] = {}
    places: Sequence[int] = range(0, _STEPS + 1, 4)
    for width in (2, 1, 0):
        scales = [tie(family(place / _STEPS)) for place in places]
        tried |= dict(zip(places, zip(scales, errors_of(scales), strict=True), strict=True))
        best = min(tried, key=lambda place: tried[place][1])
        places = [place for place in (best - width, best + width) if 0 <= place <= _STEPS]
    return tried[best]


def output_error(
    consumers: Sequence[Consumer], scale_K: torch.Tensor, scheme: Scheme, dtype: torch.dtype, method: Method
) -> float:
    """Expected squared error of the outputs a token, when inputs are divided and weights multiplied by s.

    Weights: tr(dW H dW^T), exact for rounding to nearest. Inputs: each channel's expected rounding error times the
    square of its weights. Consumers count by their tokens.
    """
    return output_errors(consumers, (scale_K,), scheme, dtype, method)[0]


def output_errors(
    consumers: Sequence[Consumer], scales: Sequence[torch.Tensor], scheme: Scheme, dtype: torch.dtype, method: Method
) -> list[float]:
    """`output_error` of each s; a GPU is waited for once, for all of them."""
    found = [_consumer_error(consumer, scale_K, scheme, dtype, method) for scale_K in scales for consumer in consumers]
    errors = iter(torch.stack(found).tolist() if found else ())
    tokens = sum(consumer.found.tokens for consumer in consumers)
    return [sum((consumer.found.tokens / tokens) * next(errors) for consumer in consumers) for _ in scales]


def _consumer_error(
    consumer: Consumer, scale_K: torch.Tensor, scheme: Scheme, dtype: torch.dtype, method: Method
) -> torch.Tensor:
    scaled = [weight * scale_K for weight in consumer.weights]
    square_K = consumer.square_K / scale_K.square()
    gram_KK = consumer.found.gram_KK
    importance_K = square_K if method == "hessian" else None
    found = find_scales(scaled, scheme.weights, method, dtype, importance_K)
    error = torch.zeros((), device=scale_K.device)
    for weight, scales in zip(scaled, found, strict=True):
        # Divided by s again, the error meets the Gram matrix as it was measured: no scaled copy of it is made.
        delta = (fake_quantize(weight, scales, scheme.weights) - weight) / scale_K
        error += (delta @ gram_KK * delta).sum()
    if scheme.activations is not None:
        noise_K = input_noise(square_K, consumer.found.channel_amax_K / scale_K, scheme.activations)
        error += sum((noise_K * weight.square().sum(0)).sum() for weight in scaled)
    return error


def _sampled(consumer: Consumer) -> Consumer:
    """Every n-th row, with one n for all of its weights, so that they keep their shares of the error."""
    every = max(1, sum(len(weight) for weight in consumer.weights) // _SAMPLED_rows)
    return consumer._replace(weights=[weight[::every] for weight in consumer.weights])


def _ones(consumers: Sequence[Consumer]) -> torch.Tensor:
    weight = consumers[0].weights[0]
    return torch.ones(weight.shape[1], device=weight.device)
