"""Whether a model keeps documents of one window apart where their positions begin anew.

transformers builds attention's masks of such positions, but not for every architecture, and recurrent or convolutional
layers (Mamba, gated delta rule, short convolutions) know of no mask. Configurations do not tell, so layers are tried.
"""

from pathlib import Path

import torch

from optcore.errors import UnknownArchitecture
from optcore.streaming.decoder import Decoder, State

_DOCUMENT_tokens = 6


def keeps_documents_apart(folder: Path) -> bool:
    """Whether no layer lets a document see the one before it. Reads the embeddings and one layer of each kind."""
    decoder = Decoder(folder)
    tokens_BT = torch.arange(2 * _DOCUMENT_tokens)[None] % decoder.model.config.get_text_config().vocab_size
    positions_BT = torch.arange(_DOCUMENT_tokens).repeat(2)[None]
    try:
        state = decoder.embed(tokens_BT, position_ids=positions_BT)
    except UnknownArchitecture:  # it takes no positions
        return False
    kinds = getattr(decoder.model.config.get_text_config(), "layer_types", None) or [""] * len(decoder)
    first: dict[tuple[str, ...], int] = {}
    for index, layer in enumerate(decoder.layers):
        first.setdefault((kinds[index], *(type(module).__name__ for module in layer.modules())), index)
    return all(_is_apart(decoder, index, state) for index in first.values())


def _is_apart(decoder: Decoder, index: int, state: State) -> bool:
    """A gradient tells it exactly, in any type: what is masked gets none at all."""
    hidden_BTH = state.hidden_BTH.detach().clone().requires_grad_()
    with decoder.layer(index) as layer, torch.enable_grad():
        out_BTH = decoder.forward(index, layer, state._replace(hidden_BTH=hidden_BTH)).hidden_BTH
        second_BTH = out_BTH[:, _DOCUMENT_tokens:].float()
        (gradient_BTH,) = torch.autograd.grad((second_BTH * _directions(second_BTH)).sum(), hidden_BTH)
    return not gradient_BTH[:, :_DOCUMENT_tokens].any()


def _directions(like: torch.Tensor) -> torch.Tensor:
    """At random: the plain sum of what a norm gives does not change with anything."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like.device)
