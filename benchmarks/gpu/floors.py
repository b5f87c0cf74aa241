"""Closed forms of the least time and memory that optimizing a Llama can take.

All are sums of FLOP over rates, or of tensors that must be there at once, without any overhead; sources are the shapes
of the model and of the algorithms (GPTQ, arXiv:2210.17323; AWQ, arXiv:2306.00978). Reading and writing files is not in
them: it can overlap with everything.

Symbols: T tokens, S tokens of a window, L layers, d hidden size, f inner size, r x c a linear layer.
"""

from typing import NamedTuple


class Rates(NamedTuple):
    """FLOP a second."""

    bf16: float
    float32: float


class Llama(NamedTuple):
    """The shapes of a model."""

    layers: int
    hidden: int
    inner: int
    keys: int
    """Channels of all key heads together."""
    vocabulary: int

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """[r, c] of a layer: q, k, v, o, gate, up, down."""
        d, f, k = self.hidden, self.inner, self.keys
        return ((d, d), (k, d), (k, d), (d, d), (f, d), (f, d), (d, f))

    @property
    def layer_parameters(self) -> int:
        """Of the linear layers of one."""
        return sum(rows * columns for rows, columns in self.linears)

    @property
    def parameters(self) -> int:
        """Of all linear layers, without embeddings and head."""
        return self.layers * self.layer_parameters


LLAMA_8B = Llama(32, 4096, 14336, 1024, 128256)


def forward_flop(model: Llama, tokens: int, length: int) -> float:
    """Once over the calibration text: 2 P T, and causal attention 2 L d T S."""
    return 2.0 * model.parameters * tokens + 2.0 * model.layers * model.hidden * tokens * length


def gram_flop(model: Llama, tokens: int) -> float:
    """X^T X of the four distinct inputs of a layer, one triangle each: T L (3 d^2 + f^2)."""
    return float(tokens * model.layers * (3 * model.hidden**2 + model.inner**2))


def factor_flop(model: Llama) -> float:
    """Cholesky, inverse, Cholesky of each: 4/3 n^3."""
    return 4 / 3 * model.layers * (3 * model.hidden**3 + model.inner**3)


def update_flop(model: Llama) -> float:
    """GPTQ's own arithmetic: r c^2 a linear layer."""
    return float(model.layers * sum(rows * columns**2 for rows, columns in model.linears))


def forward_s(model: Llama, tokens: int, length: int, rates: Rates) -> float:
    """One pass that only measures magnitudes."""
    return forward_flop(model, tokens, length) / rates.bf16


def gptq_s(model: Llama, tokens: int, length: int, rates: Rates) -> float:
    """Two passes: each layer measured on what the quantized ones before it give, then run again."""
    products = 2 * forward_flop(model, tokens, length) + gram_flop(model, tokens) + update_flop(model)
    return products / rates.bf16 + factor_flop(model) / rates.float32


def gptq_single_pass_s(model: Llama, tokens: int, length: int, rates: Rates) -> float:
    """One pass: layers measured on what the original ones give."""
    return gptq_s(model, tokens, length, rates) - forward_s(model, tokens, length, rates)


def awq_s(model: Llama, tokens: int, length: int, rates: Rates, points: int = 20) -> float:
    """One pass, and a search over `points` scalings from Gram matrices: 2 r c^2 a point, whatever T is."""
    products = forward_flop(model, tokens, length) + gram_flop(model, tokens) + 2 * points * update_flop(model)
    return products / rates.bf16


def distillation_step_s(model: Llama, tokens: int, length: int, rates: Rates) -> float:
    """6 P a token and 2 P for activations computed again, 2 P for the teacher; the head 2 d V, student 3, teacher 1."""
    attention = forward_flop(model, tokens, length) - 2.0 * model.parameters * tokens
    layers = 10.0 * model.parameters * tokens + 5 * attention
    return (layers + 8.0 * model.hidden * model.vocabulary * tokens) / rates.bf16


def gptq_bytes(model: Llama) -> float:
    """On the device: a layer in 16 bits, its Gram matrices in float32, and the largest weight in float32.

    A micro-batch comes on top, of which the formula knows nothing: it can be one window.
    """
    grams = 4 * (3 * model.hidden**2 + model.inner**2)
    return float(2 * model.layer_parameters + grams + 4 * model.hidden * model.inner)


def host_bytes(model: Llama, tokens: int) -> float:
    """On the host: the hidden states between two layers in 16 bits."""
    return 2.0 * tokens * model.hidden
