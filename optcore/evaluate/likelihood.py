"""How likely a causal model finds text.

Legend: S windows, T tokens, B windows of a batch, P positions of a part, V vocabulary.
"""

from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from optcore.evaluate.positions import only, parts
from optcore.evaluate.walked import Walked
from optcore.streaming.decoder import Decoder


@torch.no_grad()
def mean_cross_entropy(decoder: Decoder, tokens_ST: torch.Tensor, scratch: Path) -> float:
    """Nats a token, of every token but each window's first, the model streamed layer by layer."""
    walked = Walked(decoder, [tokens_ST], scratch)
    for index in range(len(decoder)):
        with decoder.layer(index) as layer:
            walked.advance(index, layer)
    nats, tokens = 0.0, 0
    for place, state in walked.batches():
        tokens_BT = tokens_ST[place.rows].to(decoder.device)
        for part in parts(len(tokens_BT), range(tokens_BT.shape[1] - 1)):
            logits_BPV = decoder.logits(only(state, part)).float()
            next_BP = tokens_BT[:, part.start + 1 : part.stop + 1]
            nats += cross_entropy(logits_BPV.flatten(0, 1), next_BP.flatten(), reduction="sum").item()
            tokens += next_BP.numel()
    return nats / tokens
