"""The model that a draft guesses for: in memory as a whole, computing what its quantized form will compute.

Shapes: B rows of T tokens, V vocabulary, H hidden size.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from optcore.streaming.decoder import Decoder
from optcore.streaming.simulate import as_quantized
from optcore.training.head import last_hidden, streamed_head
from optcore.training.teacher import kept_outputs


class Features(NamedTuple):
    """What a target computed of tokens, and a draft reads."""

    hidden_BTH: torch.Tensor
    """What its head makes logits of: behind the final norm."""
    tapped: tuple[torch.Tensor, ...]
    """The outputs [B, T, H] of the tapped layers, in the order of the taps."""


class TargetShape:
    """What the configuration of a model and its tables say, whether their values are there or not."""

    model: Any

    @property
    def embeddings(self) -> nn.Embedding:
        """The table of its tokens."""
        found: nn.Embedding = self.model.get_input_embeddings()
        return found

    @property
    def width(self) -> int:
        """Its hidden size."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def vocabulary(self) -> int:
        """Tokens that its head knows."""
        return int(self.model.config.get_text_config().vocab_size)


class TargetEnds(TargetShape):
    """What lies around a target's layers, without them: the embeddings before and the head behind.

    Enough for a draft whose features are kept, beside targets that do not fit into memory.
    """

    def __init__(
        self,
        folder: Path,
        taps: Sequence[int] = (),
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`taps` are numbers of layers from 0 whose outputs a draft reads."""
        self.taps = tuple(taps)
        self.decoder = Decoder(folder, device, dtype)
        self.model = self.decoder.model
        self.head = streamed_head(self.decoder)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.decoder.device

    def logits(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        """Logits [..., V] in float32 of what `Target.look` gives as `hidden_BTH`, or of any part of it."""
        assert self.head is not None
        found = self.head.linear(hidden_BTH).float()
        return self.head.transform(found) if self.head.transform else found


class Target(TargetEnds):
    """A checkpoint, quantized or not, that answers about whole windows; `optcore.speculative.session` decodes with it.

    `taps` are numbers of layers from 0, whose outputs are kept: what engines call auxiliary hidden state n is the input
    of layer n, and so the output of layer n - 1. Nothing of it requires a gradient. It computes in `Decoder`'s type
    unless `dtype` says otherwise.
    """

    def __init__(
        self,
        folder: Path,
        taps: Sequence[int] = (),
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(folder, taps, device, dtype)
        self.decoder.load_all()
        self._held = as_quantized(self.decoder)  # the layers stay rounded for as long as the target is there

    @torch.no_grad()
    def look(self, inputs: dict[str, Any], cache: Any = None) -> Features:
        """One pass over whole windows; `inputs` as `optcore.training.trainee.inputs_of` gives them.

        With a KV cache they go on from what that holds, and are added to it.
        """
        cached = {} if cache is None else {"past_key_values": cache, "use_cache": True}
        layers = [self.decoder.layers[tap] for tap in self.taps]
        with kept_outputs(layers) as outputs:  # a pass goes through layers in their order, whatever that of the taps
            hidden_BTH = last_hidden(self.model, **inputs, **cached)
        in_order = dict(zip(sorted(set(self.taps)), outputs, strict=True))
        return Features(hidden_BTH, tuple(in_order[tap] for tap in self.taps))
