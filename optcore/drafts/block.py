"""DFlash (arXiv:2602.06036): all tokens of a block guessed in one pass, by layers that see what the target computed.

A block is the chosen token followed by masks, each at the position of the token it stands for; row j > 0 says which
token that is, and row 0 says nothing. Within the block everybody sees everybody, and the features of the target's
tapped layers, fused by `fc` and `hidden_norm`, stand in front of it as keys and values in every layer. Layers are
Qwen3's, with a norm on each query's and key's head, and are named as in the checkpoints of the authors.

In training blocks begin at places drawn at random in each window, each of which sees the features before it, as in
decoding. Their loss weighs the k-th token by exp(-k/gamma), gamma 4 for blocks of 8 and 7 for blocks of 16: decays of
0.78 and 0.87. The authors' mask is a token of the target's vocabulary that never occurs, which is all that engines know
to read; for a target without one it is a learned embedding.

Shapes: B rows of T tokens, A places that answer, Q tokens of a block, H hidden size, S slots.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import nn

from optcore.drafts.borrowed import Borrowed
from optcore.drafts.draft import Draft
from optcore.drafts.drawing import Drawn
from optcore.drafts.fusion import Fusion
from optcore.drafts.layers import DecoderLayer, KeysValues, Text, initialise, same_document
from optcore.drafts.sizes import Sizes
from optcore.drafts.slots import Slots, left_aligned
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.speculative.drafter import Proposal
from optcore.speculative.outline import AnyTarget
from optcore.speculative.sampling import Sampling
from optcore.speculative.target import Features
from optcore.training.head import Head

_AT_ONCE = 64


class Block(Draft):
    """The drafter for blocks of `count` drafted tokens: fewer may be asked for, and are the first of them."""

    method: ClassVar[str] = "block"
    anchors = 512

    def __init__(
        self,
        target: AnyTarget,
        vocabulary: DraftVocabulary,
        count: int,
        *,
        layers: int = 5,
        mask_token: int | None = None,
        sizes: Sizes | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.vocabulary, self.count, self.taps = vocabulary, count, target.taps
        self.sizes = sizes or Sizes.of(target.model.config.get_text_config())
        width, epsilon = self.sizes.hidden_size, self.sizes.rms_norm_eps
        self._borrowed = Borrowed.of(target, vocabulary)
        self.fc = Fusion(len(self.taps) * target.width, width)
        self.hidden_norm = nn.RMSNorm(width, eps=epsilon)
        self.layers = nn.ModuleList(DecoderLayer(self.sizes, head_norms=True) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=epsilon)
        initialise(self, seed)
        self.to(target.device)
        self.mask_token = mask_token
        self.mask_H: torch.Tensor = _mask(target, mask_token)

    @property
    def most(self) -> int:
        """A block."""
        return self.count

    def answers(
        self, tokens_BT: torch.Tensor, positions_BT: torch.Tensor, features: Features, count: int
    ) -> Iterator[torch.Tensor]:
        """Of a block behind every token, some at a time: for measuring; training asks `answers_at`."""
        shown = self.context(features, positions_BT)
        places_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
        parts = [
            self._answered(anchors_BA, tokens_BT, positions_BT, shown, count)
            for anchors_BA in places_BT.split(_AT_ONCE, 1)
        ]
        yield from torch.cat(parts, 1).unbind(2)

    def answers_at(
        self,
        anchors_BA: torch.Tensor,
        tokens_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        features: Features,
        count: int,
    ) -> Iterator[torch.Tensor]:
        """Blocks at places t: each sees features 0..t of its document, the token t+1, and no other block."""
        shown = self.context(features, positions_BT)
        yield from self._answered(anchors_BA, tokens_BT, positions_BT, shown, count).unbind(2)

    def head(self, k: int = 0) -> Head:
        """The target's: `answers` are behind the last norm already."""
        return self._borrowed.head

    def drafter(self, sequences: int) -> "BlockDrafter":
        """Begin to draft for so many sequences."""
        return BlockDrafter(self, sequences)

    def context(self, features: Features, positions_BT: torch.Tensor) -> list[KeysValues]:
        """What each layer is shown of the text: keys and values of the fused features."""
        fused_BTH = self.hidden_norm(self.fc(torch.cat(features.tapped, -1)))
        return [layer.self_attn.keys_values(fused_BTH, positions_BT) for layer in self.layers]

    def blocks(self, chosen_BA: torch.Tensor, positions_BA: torch.Tensor, texts: list[Text]) -> torch.Tensor:
        """What the layers make of the blocks that begin with these tokens at these positions, [B, A, Q, H]."""
        embedded_BA1H = self._borrowed.embed(chosen_BA, self.mask_H)[:, :, None]
        masks_BAqH = self.mask_H.expand(*chosen_BA.shape, self.count, -1)
        hidden_BAQH = torch.cat((embedded_BA1H, masks_BAqH), 2)
        positions_BAQ = positions_BA[:, :, None] + torch.arange(self.count + 1, device=positions_BA.device)
        for layer, text in zip(self.layers, texts, strict=True):
            hidden_BAQH = layer(hidden_BAQH, positions_BAQ, text, layer.keys_values(hidden_BAQH, positions_BAQ))
        out: torch.Tensor = self.norm(hidden_BAQH)
        return out

    def _answered(
        self,
        anchors_BA: torch.Tensor,
        tokens_BT: torch.Tensor,
        positions_BT: torch.Tensor,
        shown: list[KeysValues],
        count: int,
    ) -> torch.Tensor:
        """The first `count` answers in each place, [B, A, count, H]."""
        if count > self.count:
            raise ValueError(f"a block of {self.count} drafted tokens gives no {count} answers")
        rows_B1 = torch.arange(len(anchors_BA), device=anchors_BA.device)[:, None]
        visible_BAT = same_document(positions_BT).tril()[rows_B1, anchors_BA]
        chosen_BA, positions_BA = (values[rows_B1, anchors_BA] for values in (tokens_BT.roll(-1, 1), positions_BT))
        texts = [Text(of_layer, visible_BAT) for of_layer in shown]
        return self.blocks(chosen_BA, positions_BA + 1, texts)[:, :, 1 : count + 1]


def _mask(target: AnyTarget, token: int | None) -> torch.Tensor:
    """The token's embedding as it is, or a parameter that begins in the middle of all embeddings."""
    table_VH = target.embeddings.weight.detach().float()
    return nn.Parameter(table_VH.mean(0)) if token is None else nn.Buffer(table_VH[token].clone(), persistent=False)


class BlockDrafter:
    """Keeps what each layer is shown of the text."""

    def __init__(self, draft: Block, sequences: int) -> None:
        self.taps = draft.taps
        self._draft = draft
        self._lengths_B = torch.zeros(sequences, dtype=torch.int64, device=draft.mask_H.device)
        self._slots = [Slots() for _ in draft.layers]

    @torch.no_grad()
    def read(self, tokens_BT: torch.Tensor, valid_BT: torch.Tensor, features: Features) -> None:
        """Compute the keys and values of these tokens' features; the tokens themselves are in them."""
        counts_B, *tapped = left_aligned(valid_BT, *features.tapped)
        places_BT = self._lengths_B[:, None] + torch.arange(valid_BT.shape[1], device=valid_BT.device)
        shown = self._draft.context(Features(features.hidden_BTH, tuple(tapped)), places_BT)
        for slots, of_layer in zip(self._slots, shown, strict=True):
            slots.write(places_BT, of_layer)
        self._lengths_B = self._lengths_B + counts_B

    @torch.no_grad()
    def propose(
        self, chosen_B: torch.Tensor, count: int, sampling: Sampling, generator: torch.Generator | None
    ) -> Proposal:
        """A chain of at most as many tokens as a block has, each drawn without knowing the others."""
        slots_S = torch.arange(self._slots[0].held.keys.shape[1], device=self._lengths_B.device)
        visible_B1S = slots_S < self._lengths_B[:, None, None]
        texts = [Text(slots.held, visible_B1S) for slots in self._slots]
        hidden_B1QH = self._draft.blocks(chosen_B[:, None], self._lengths_B[:, None], texts)
        drawn = Drawn(self._draft.vocabulary, sampling, generator)
        for hidden_BH in hidden_B1QH[:, 0, 1 : count + 1].unbind(1):
            drawn.draw(self._draft.logits(hidden_BH))
        return drawn.proposal
