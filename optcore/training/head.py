"""What makes logits of a model's last hidden states, so that a loss can ask for a few rows at a time."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from optcore.training.linear_loss import Transform

if TYPE_CHECKING:
    from optcore.streaming.decoder import Decoder

_CLOSE = 1e-4
_PROBE_tokens = 4


class Head(NamedTuple):
    """A linear layer over the vocabulary, and an elementwise function behind it."""

    linear: nn.Module
    transform: Transform | None = None
    """A soft cap or a factor; None where the linear layer's outputs are the logits."""

    @property
    def is_plain(self) -> bool:
        """Whether logits are the product with its weight, and nothing else."""
        return self.transform is None and self.linear.bias is None


class _Looked(NamedTuple):
    """What a model computes of a few tokens."""

    hidden_BTH: torch.Tensor
    logits_BTV: torch.Tensor


@torch.no_grad()
def find_head(model: Any) -> Head | None:
    """The model's head, tried on a few tokens; None where logits are made in some other way."""
    return _tried(model, lambda tokens_BT: _Looked(last_hidden(model, input_ids=tokens_BT), _logits(model, tokens_BT)))


@torch.no_grad()
def streamed_head(decoder: "Decoder") -> Head | None:
    """The same of a model whose layers are not in memory: what the first is given goes right behind the last."""

    def look(tokens_BT: torch.Tensor) -> _Looked:
        state = decoder.embed(tokens_BT)
        return _Looked(decoder.before_head(state.hidden_BTH), decoder.logits(state))

    return _tried(decoder.model, look)


def _tried(model: Any, look: Callable[[torch.Tensor], _Looked]) -> Head | None:
    linear = model.get_output_embeddings()
    if not isinstance(linear, nn.Linear):
        return None
    device = linear.weight.device
    looked = look(torch.arange(_PROBE_tokens, device=device)[None] % model.config.get_text_config().vocab_size)
    hidden_BTH, wanted = looked.hidden_BTH, looked.logits_BTV.float()
    if hidden_BTH.shape[-1] != linear.in_features:
        return None
    plain, heads = linear(hidden_BTH), dict[float, Head]()
    for transform in (None, *_transforms(model.config.get_text_config())):
        found = (transform(plain) if transform else plain).float()  # rounded where the model itself rounds
        if found.shape == wanted.shape and (error := (found - wanted).norm()) <= _CLOSE * wanted.norm():
            heads.setdefault(float(error), Head(linear, transform))
    return heads[min(heads)] if heads else None  # small logits hardly show a cap: of those that fit, the closest


def last_hidden(model: Any, **named: Any) -> torch.Tensor:
    """What the model without its head gives, [B, T, H]; without a KV cache unless one is named."""
    out: torch.Tensor = model.base_model(**{"use_cache": False, **named})[0]
    return out


def _logits(model: Any, tokens_BT: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=tokens_BT, use_cache=False).logits
    return logits


def _transforms(config: Any) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """Soft caps (Gemma) and factors (Cohere, Granite), by what configurations call them."""
    found: list[Callable[[torch.Tensor], torch.Tensor]] = []
    if cap := getattr(config, "final_logit_softcapping", None):
        found.append(lambda logits: torch.tanh(logits / cap) * cap)
    if scale := getattr(config, "logit_scale", None):
        found.append(lambda logits: logits * scale)
    if divisor := getattr(config, "logits_scaling", None):
        found.append(lambda logits: logits / divisor)
    return found
