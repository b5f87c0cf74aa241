"""Multi-token prediction: one decoder layer on the target's last hidden state, applied again and again.

The layer is DeepSeek-V3's (arXiv:2412.19437, section 2.2), with Llama's attention: it reads
eh_proj [enorm(embedding of x_{t+1}); hnorm(h_t)] and its output, behind a norm of its own, goes through the target's
head. h_t is the target's hidden state behind its final norm, as vLLM's deepseek_mtp gives it. As FastMTP does
(arXiv:2509.18362), the one layer goes on from its own output, in front of its own norm as in vLLM, with the next token.

What a further step may attend to is settled by decoding: the cache holds the layer's keys of the text, and those of the
steps since the last text token. Training does the same for every position at once, as EAGLE-3's training-time test
does (arXiv:2503.01840). FastMTP's own training lets step k see the k-th steps of earlier positions instead, which
decoding never has.

Shapes: B rows of T tokens, A places that answer, H hidden size.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import nn

from optcore.drafts.borrowed import Borrowed
from optcore.drafts.draft import Draft
from optcore.drafts.drawing import Drawn
from optcore.drafts.layers import DecoderLayer, KeysValues, Text, initialise, same_document
from optcore.drafts.sizes import Sizes
from optcore.drafts.slots import Slots, last_of, left_aligned
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.speculative.drafter import Proposal
from optcore.speculative.outline import AnyTarget
from optcore.speculative.sampling import Sampling
from optcore.speculative.target import Features
from optcore.training.head import Head


class Mtp(Draft):
    """The layer; as large as the target's attention and feed-forward network unless `sizes` say otherwise."""

    method: ClassVar[str] = "mtp"
    taps: tuple[int, ...] = ()

    def __init__(
        self, target: AnyTarget, vocabulary: DraftVocabulary, *, sizes: Sizes | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.sizes = sizes or Sizes.of(target.model.config.get_text_config())
        width, epsilon = self.sizes.hidden_size, self.sizes.rms_norm_eps
        self._borrowed = Borrowed.of(target, vocabulary)
        self.enorm = nn.RMSNorm(width, eps=epsilon)
        self.hnorm = nn.RMSNorm(width, eps=epsilon)
        self.eh_proj = nn.Linear(2 * width, width, bias=False)
        self.layer = DecoderLayer(self.sizes)
        self.norm = nn.RMSNorm(width, eps=epsilon)
        initialise(self, seed)
        self.to(target.device)

    def answers(
        self, tokens_BT: torch.Tensor, positions_BT: torch.Tensor, features: Features, count: int
    ) -> Iterator[torch.Tensor]:
        """Step k at t reads x_{t+1+k}, its output of step k-1, and the keys of the text before t in its document."""
        hidden_BTH = features.hidden_BTH.to(self.eh_proj.weight.dtype)
        inputs_BTH = self.inputs(tokens_BT.roll(-1, 1), hidden_BTH, positions_BT)
        text = Text(self.layer.keys_values(inputs_BTH, positions_BT), same_document(positions_BT).tril(-1))
        guess = None
        for k in range(count):
            step = tokens_BT.roll(-1 - k, 1)
            hidden_BTH, guess = self.step(step, hidden_BTH, positions_BT + k, text, guess)
            yield self.norm(hidden_BTH)

    def head(self, k: int = 0) -> Head:
        """The target's, whatever the step: `answers` are behind the layer's own norm already."""
        return self._borrowed.head

    def drafter(self, sequences: int) -> "MtpDrafter":
        """Begin to draft for so many sequences."""
        return MtpDrafter(self, sequences)

    def inputs(self, next_BA: torch.Tensor, hidden_BAH: torch.Tensor, positions_BA: torch.Tensor) -> torch.Tensor:
        """What the layer reads, [B, A, H]. A document's first token is followed by nothing it could be told of: vLLM
        clears that embedding, and so it is cleared in training."""
        embedded = self._borrowed.embed(next_BA, self.eh_proj.weight)
        embedded = embedded.masked_fill((positions_BA <= 0)[..., None], 0)
        out: torch.Tensor = self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(hidden_BAH)), -1))
        return out

    def step(
        self,
        next_BA: torch.Tensor,
        hidden_BAH: torch.Tensor,
        positions_BA: torch.Tensor,
        text: Text,
        before: KeysValues | None,
    ) -> tuple[torch.Tensor, KeysValues]:
        """The layer's output [B, A, H] in each place, and the keys and values of its steps there so far."""
        inputs_BAH = self.inputs(next_BA, hidden_BAH, positions_BA)
        inputs_BA1H, positions_BA1 = inputs_BAH[:, :, None], positions_BA[:, :, None]
        own = self.layer.keys_values(inputs_BA1H, positions_BA1)
        guess = before.and_then(own) if before else own
        return self.layer(inputs_BA1H, positions_BA1, text, guess)[:, :, 0], guess


class MtpDrafter:
    """Keeps the layer's keys of the text. The last token's are computed once its successor is known, so its hidden
    state waits.

    The row of token t lies in slot t + 1: slot 0 takes what waits before anything was read, and is never seen.
    """

    taps: tuple[int, ...] = ()

    def __init__(self, draft: Mtp, sequences: int) -> None:
        self._draft = draft
        weight = draft.eh_proj.weight
        self._waiting_BH = weight.new_zeros(sequences, draft.sizes.hidden_size)
        self._lengths_B = torch.zeros(sequences, dtype=torch.int64, device=weight.device)
        self._slots = Slots()

    @torch.no_grad()
    def read(self, tokens_BT: torch.Tensor, valid_BT: torch.Tensor, features: Features) -> None:
        """Compute the keys of the tokens before these, each with its successor."""
        hidden_BTH = features.hidden_BTH.to(self._waiting_BH.dtype)
        counts_B, tokens_BT, hidden_BTH = left_aligned(valid_BT, tokens_BT, hidden_BTH)
        slots_BT = self._lengths_B[:, None] + torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        behind_BTH = torch.cat((self._waiting_BH[:, None], hidden_BTH[:, :-1]), 1)
        inputs_BTH = self._draft.inputs(tokens_BT, behind_BTH, slots_BT - 1)
        self._slots.write(slots_BT, self._draft.layer.keys_values(inputs_BTH, slots_BT - 1))
        self._waiting_BH = torch.where((counts_B > 0)[:, None], last_of(hidden_BTH, counts_B), self._waiting_BH)
        self._lengths_B = self._lengths_B + counts_B

    @torch.no_grad()
    def propose(
        self, chosen_B: torch.Tensor, count: int, sampling: Sampling, generator: torch.Generator | None
    ) -> Proposal:
        """A chain, each token drawn before the next step."""
        drawn = Drawn(self._draft.vocabulary, sampling, generator)
        text, guess = Text(self._slots.held, self._visible_B1S), None
        tokens_B, hidden_B1H, positions_B1 = chosen_B, self._waiting_BH[:, None], self._lengths_B[:, None] - 1
        for k in range(count):
            hidden_B1H, guess = self._draft.step(tokens_B[:, None], hidden_B1H, positions_B1 + k, text, guess)
            tokens_B = drawn.draw(self._draft.logits(self._draft.norm(hidden_B1H))[:, 0])
        return drawn.proposal

    @property
    def _visible_B1S(self) -> torch.Tensor:
        """The slots of tokens whose successor was read."""
        slots_S = torch.arange(self._slots.held.keys.shape[1], device=self._lengths_B.device)
        return (slots_S > 0) & (slots_S < self._lengths_B[:, None, None])
