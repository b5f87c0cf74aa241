"""EAGLE-3 (arXiv:2503.01840): one layer that goes on from features of three of the target's layers.

At position t the features g_t of tokens 0..t, fused by `fc`, and the embedding of token t+1 give a hidden state, whose
logits are about token t+2. From there the draft goes on from that state instead of features, and is trained to
(training-time test): step k is given token t+1+k and stands at position t+k.

Shapes: B rows of T tokens, H hidden size of target and draft, V tokens of the target, D of the draft.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint

from optcore.drafts.draft import Draft
from optcore.drafts.eagle3_drafter import Eagle3Drafter, TreeShape
from optcore.drafts.eagle3_layer import MidLayer
from optcore.drafts.fusion import Fusion
from optcore.drafts.layers import KeysValues, same_document
from optcore.drafts.sizes import Sizes
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.speculative.target import Features
from optcore.training.head import Head


class Eagle3(Draft):
    """Parameters are named as SpecForge writes them; the target's embeddings are read, and not among them."""

    method: ClassVar[str] = "eagle3"

    def __init__(
        self, sizes: Sizes, taps: Sequence[int], vocabulary: DraftVocabulary, embeddings_VH: torch.Tensor
    ) -> None:
        super().__init__()
        self.sizes, self.taps, self.vocabulary = sizes, tuple(taps), vocabulary
        self.recomputes = False
        """Whether a backward pass computes attention again instead of keeping its weights."""
        self.register_buffer("embeddings_VH", embeddings_VH.detach(), persistent=False)
        self.fc = Fusion(len(self.taps) * sizes.hidden_size, sizes.hidden_size)
        self.midlayer = MidLayer(sizes)
        self.norm = nn.RMSNorm(sizes.hidden_size, sizes.rms_norm_eps)
        self.lm_head = nn.Linear(sizes.hidden_size, len(vocabulary.ids_D), bias=False)

    def fused(self, features: Features) -> torch.Tensor:
        """g [B, T, H] of the tapped layers' outputs."""
        fused_BTH: torch.Tensor = self.fc(torch.cat(features.tapped, -1))
        return fused_BTH

    def embedded(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        """Rows [B, T, H] of the target's table, as they are: engines scale none."""
        return embedding(tokens_BT, self.embeddings_VH).to(self.fc.weight.dtype)

    def answers(
        self, tokens_BT: torch.Tensor, positions_BT: torch.Tensor, features: Features, count: int
    ) -> Iterator[torch.Tensor]:
        """See `Draft`: the attention of step k sees step 0 up to its position, and steps 1..k of that position."""
        seen_BTT, hidden_BTH = same_document(positions_BT).tril(), self.fused(features)
        past, own = None, list[KeysValues]()
        for k in range(count):
            embedded_BTH = self.embedded(tokens_BT.roll(-1 - k, 1))
            asking = self.midlayer.ask(embedded_BTH, hidden_BTH, positions_BT + k)
            if past is None:
                past = asking.own
            else:
                own = [*own, asking.own]
            if self.recomputes and torch.is_grad_enabled():
                hidden_BTH = checkpoint(self.midlayer.answer, asking, past, seen_BTT, own, use_reentrant=False)
            else:
                hidden_BTH = self.midlayer.answer(asking, past, seen_BTT, own)
            yield self.norm(hidden_BTH)

    def head(self, k: int = 0) -> Head:
        """See `Draft`: the same for every answer."""
        return Head(self.lm_head)

    def drafter(self, sequences: int, tree: TreeShape | None = None) -> Eagle3Drafter:
        """See `Draft`; with a `tree` it proposes one instead of a chain, for one sequence."""
        return Eagle3Drafter(self, sequences, tree)
