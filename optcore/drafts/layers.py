"""A Llama-style decoder layer whose queries see two kinds of keys: a text's, and those of their own guess.

Many queries share the text's keys; a guess belongs to one group of queries only. A guess is what a draft goes on from
beyond the text: its own last steps (MTP), or a block of masks (DFlash). In training every position of a window
begins a guess of its own, and no guess may see another. With the guess's keys kept apart, that takes T x (S + J) scores
instead of the T x (S + T J) of one long masked sequence, and decoding, which has one group and its cache as text, walks
the very same path.

Shapes: B rows, A groups, Q queries of a group, S keys of the text, J keys of a group's guess, N heads, G key-value
heads, r = N / G, h head size, H hidden size.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import silu

from optcore.drafts.sizes import Sizes


class KeysValues(NamedTuple):
    """Keys, turned to their positions, and values: [B, S, G, h] of a text, [B, A, J, G, h] of guesses."""

    keys: torch.Tensor
    values: torch.Tensor

    def and_then(self, more: "KeysValues") -> "KeysValues":
        """Of guesses: theirs and these."""
        return KeysValues(torch.cat((self.keys, more.keys), 2), torch.cat((self.values, more.values), 2))

    def picked(self, places: torch.Tensor) -> "KeysValues":
        """Those of some places, or of some groups."""
        return KeysValues(self.keys[:, places], self.values[:, places])


class Text(NamedTuple):
    """What groups share, and which of it each may see."""

    shared: KeysValues
    visible_BAS: torch.Tensor
    """bool."""


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; `head_norms` norms each query's and key's head, as Qwen3 does."""

    def __init__(self, sizes: Sizes, head_norms: bool = False) -> None:
        super().__init__()
        self.sizes = sizes
        queries, keys = sizes.num_attention_heads * sizes.head_dim, sizes.num_key_value_heads * sizes.head_dim
        self.q_proj = nn.Linear(sizes.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(sizes.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(sizes.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, sizes.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(sizes.head_dim, eps=sizes.rms_norm_eps) if head_norms else nn.Identity()
        self.k_norm = nn.RMSNorm(sizes.head_dim, eps=sizes.rms_norm_eps) if head_norms else nn.Identity()

    def keys_values(self, inputs: torch.Tensor, positions: torch.Tensor) -> KeysValues:
        """Of inputs [..., H] at positions [...]."""
        keys = self.k_norm(self._heads(self.k_proj(inputs)))
        return KeysValues(rotated(keys, positions, self.sizes.rope_theta), self._heads(self.v_proj(inputs)))

    def forward(
        self, inputs_BAQH: torch.Tensor, positions_BAQ: torch.Tensor, text: Text, guess: KeysValues
    ) -> torch.Tensor:
        """What the queries gather, [B, A, Q, H]: each from all of its group's guess, and the text its group may see."""
        queries = rotated(self.q_norm(self._heads(self.q_proj(inputs_BAQH))), positions_BAQ, self.sizes.rope_theta)
        gathered_BAQNh = attend(queries, text, guess)
        out: torch.Tensor = self.o_proj(gathered_BAQNh.flatten(-2))
        return out

    def _heads(self, flat: torch.Tensor) -> torch.Tensor:
        return flat.unflatten(-1, (-1, self.sizes.head_dim))


class SwiGLU(nn.Module):
    """Llama's feed-forward network."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.hidden_size, sizes.intermediate_size, bias=False)
        self.up_proj = nn.Linear(sizes.hidden_size, sizes.intermediate_size, bias=False)
        self.down_proj = nn.Linear(sizes.intermediate_size, sizes.hidden_size, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., H] of [..., H]."""
        out: torch.Tensor = self.down_proj(silu(self.gate_proj(inputs)) * self.up_proj(inputs))
        return out


class DecoderLayer(nn.Module):
    """Attention and feed-forward network, each behind a norm and beside a residual; parameters named as Llama's."""

    def __init__(self, sizes: Sizes, head_norms: bool = False) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(sizes.hidden_size, eps=sizes.rms_norm_eps)
        self.self_attn = Attention(sizes, head_norms)
        self.post_attention_layernorm = nn.RMSNorm(sizes.hidden_size, eps=sizes.rms_norm_eps)
        self.mlp = SwiGLU(sizes)

    def keys_values(self, inputs: torch.Tensor, positions: torch.Tensor) -> KeysValues:
        """Of this layer's inputs [..., H] at positions [...]."""
        return self.self_attn.keys_values(self.input_layernorm(inputs), positions)

    def forward(
        self, inputs_BAQH: torch.Tensor, positions_BAQ: torch.Tensor, text: Text, guess: KeysValues
    ) -> torch.Tensor:
        """The layer's outputs [B, A, Q, H]; `guess` holds the inputs' own keys and values, wherever they are seen."""
        normed = self.input_layernorm(inputs_BAQH)
        middle = inputs_BAQH + self.self_attn(normed, positions_BAQ, text, guess)
        out: torch.Tensor = middle + self.mlp(self.post_attention_layernorm(middle))
        return out


def attend(queries_BAQNh: torch.Tensor, text: Text, guess: KeysValues) -> torch.Tensor:
    """Softmax over both kinds of keys at once, [B, A, Q, N, h]; its sum is taken in float32 at least."""
    grouped = queries_BAQNh.unflatten(3, (guess.keys.shape[3], -1)) * queries_BAQNh.shape[-1] ** -0.5
    of_text = torch.einsum("baqgrh,bsgh->bgraqs", grouped, text.shared.keys)
    of_text = of_text.masked_fill(~text.visible_BAS[:, None, None, :, None], -torch.inf)
    of_guess = torch.einsum("baqgrh,bajgh->bgraqj", grouped, guess.keys)
    scores = torch.cat((of_text, of_guess), -1)
    shares = scores.softmax(-1, torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
    from_text, from_guess = shares.split((of_text.shape[-1], of_guess.shape[-1]), -1)
    gathered = torch.einsum("bgraqs,bsgh->baqgrh", from_text, text.shared.values)
    gathered = gathered + torch.einsum("bgraqj,bajgh->baqgrh", from_guess, guess.values)
    return gathered.flatten(3, 4)


def rotated(heads: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Heads [..., n, h] turned to their positions [...]: rotary embedding (arXiv:2104.09864) in Llama's order, where
    the i-th number of the first half goes with the i-th of the second."""
    half = heads.shape[-1] // 2
    precise = torch.promote_types(heads.dtype, torch.float32)
    exponents = torch.arange(half, device=heads.device, dtype=precise) / half
    angles = positions[..., None, None] * theta**-exponents
    cosines, sines = angles.cos(), angles.sin()
    first, second = heads.to(precise).chunk(2, -1)
    return torch.cat((first * cosines - second * sines, second * cosines + first * sines), -1).to(heads.dtype)


def same_document(positions_BT: torch.Tensor) -> torch.Tensor:
    """Which tokens of a window belong together, bool [B, T, T], where positions begin at 0 again with each document."""
    documents_BT = (positions_BT == 0).cumsum(1)
    return documents_BT[:, :, None] == documents_BT[:, None, :]


@torch.no_grad()
def initialise(module: nn.Module, seed: int, deviation: float = 0.02) -> None:
    """Draw all matrices from a normal distribution of their own seed; what is no matrix stays as it was made."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim == 2:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
