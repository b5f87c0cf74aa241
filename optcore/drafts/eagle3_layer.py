"""The one decoder layer of an EAGLE-3 draft, Llama's but that it reads a token's embedding beside the features.

Its attention has a past that all places share, and beside it entries that each place has to itself: what the draft
computed on the way there from its own guesses. So nothing is copied, in training (arXiv:2503.01840, figure 6), along a
chain and down a tree alike.

Shapes: B rows, T asking places, S places of the past, G key-value heads, R query heads of each, N = G R, E head size, H
hidden size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from optcore.drafts.layers import KeysValues, SwiGLU, rotated
from optcore.drafts.sizes import Sizes


class Asking(NamedTuple):
    """Places before they attend to anything."""

    queries_BTNE: torch.Tensor
    own: KeysValues
    """One entry of each place, [B, T, G, E]."""
    residual_BTH: torch.Tensor


class Attention(nn.Module):
    """Grouped-query attention over twice the hidden size.

    That of `optcore.drafts.layers` holds all keys of a guess in one tensor, for many queries. Here a place asks once a
    step, so its entries stay where they were made.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        inside = sizes.num_attention_heads * sizes.head_dim
        shared = sizes.num_key_value_heads * sizes.head_dim
        self.q_proj = nn.Linear(2 * sizes.hidden_size, inside, bias=False)
        self.k_proj = nn.Linear(2 * sizes.hidden_size, shared, bias=False)
        self.v_proj = nn.Linear(2 * sizes.hidden_size, shared, bias=False)
        self.o_proj = nn.Linear(inside, sizes.hidden_size, bias=False)

    def ask(self, inputs: torch.Tensor, positions_BT: torch.Tensor) -> tuple[torch.Tensor, KeysValues]:
        """Queries [B, T, N, E] and keys and values [B, T, G, E] of inputs [B, T, 2 H]."""
        split, theta = (-1, self.sizes.head_dim), self.sizes.rope_theta
        queries, keys, values = (
            linear(inputs).unflatten(-1, split) for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        return rotated(queries, positions_BT, theta), KeysValues(rotated(keys, positions_BT, theta), values)

    def answer(
        self, queries_BTNE: torch.Tensor, past: KeysValues, seen_BTS: torch.Tensor, own: Sequence[KeysValues]
    ) -> torch.Tensor:
        """What is found [B, T, H]: in the past where `seen_BTS`, and in every place's own entries [B, T, G, E]."""
        groups, size = self.sizes.num_key_value_heads, self.sizes.head_dim
        queries_BTGRE = queries_BTNE.unflatten(2, (groups, -1)) * size**-0.5
        scores = torch.einsum("btgre,bsge->btgrs", queries_BTGRE, past.keys)
        scores = scores.masked_fill(~seen_BTS[:, :, None, None], float("-inf"))
        beside = [(queries_BTGRE * one.keys[:, :, :, None]).sum(-1, keepdim=True) for one in own]
        precise = torch.promote_types(scores.dtype, torch.float32)
        weights = torch.cat((scores, *beside), -1).softmax(-1, precise).to(queries_BTNE.dtype)
        there = past.keys.shape[1]
        found = torch.einsum("btgrs,bsge->btgre", weights[..., :there], past.values)
        for number, one in enumerate(own):
            found = found + weights[..., there + number, None] * one.values[:, :, :, None]
        answer: torch.Tensor = self.o_proj(found.flatten(2))
        return answer


class MidLayer(nn.Module):
    """The layer, called in two parts, between which its keys find their place."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, eps = sizes.hidden_size, sizes.rms_norm_eps
        self.self_attn = Attention(sizes)
        self.mlp = SwiGLU(sizes)
        self.hidden_norm = nn.RMSNorm(width, eps)
        self.input_layernorm = nn.RMSNorm(width, eps)
        self.post_attention_layernorm = nn.RMSNorm(width, eps)

    def ask(self, embedded_BTH: torch.Tensor, hidden_BTH: torch.Tensor, positions_BT: torch.Tensor) -> Asking:
        """What places ask for, and what they are found by."""
        normed_BTH = self.hidden_norm(hidden_BTH)
        inputs = torch.cat((self.input_layernorm(embedded_BTH), normed_BTH), -1)
        queries_BTNE, own = self.self_attn.ask(inputs, positions_BT)
        is_normed = self.self_attn.sizes.norm_before_residual
        return Asking(queries_BTNE, own, normed_BTH if is_normed else hidden_BTH)

    def answer(
        self, asking: Asking, past: KeysValues, seen_BTS: torch.Tensor, own: Sequence[KeysValues]
    ) -> torch.Tensor:
        """The layer's output [B, T, H], before the final norm."""
        attended = self.self_attn.answer(asking.queries_BTNE, past, seen_BTS, own)
        hidden_BTH = asking.residual_BTH + attended
        out: torch.Tensor = hidden_BTH + self.mlp(self.post_attention_layernorm(hidden_BTH))
        return out
