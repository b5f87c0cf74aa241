"""What makes logits of a model's last hidden states, so that a loss can ask for a few rows at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from optcore.training.linear_loss import Transform

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


@torch.no_grad()
def find_head(model: Any) -> Head | None:
    """The model's head, tried on a few tokens; None where logits are made in some other way."""
    linear = model.get_output_embeddings()
    if not isinstance(linear, nn.Linear):
        return None
    device = linear.weight.device
    tokens_BT = torch.arange(_PROBE_tokens, device=device)[None] % model.config.get_text_config().vocab_size
    wanted = model(input_ids=tokens_BT, use_cache=False).logits.float()
    hidden = last_hidden(model, input_ids=tokens_BT)
    if hidden.shape[-1] != linear.in_features:
        return None
    plain = linear(hidden)
    for transform in (None, *_transforms(model.config.get_text_config())):
        found = (transform(plain) if transform else plain).float()  # rounded where the model itself rounds
        if found.shape == wanted.shape and (found - wanted).norm() <= _CLOSE * wanted.norm():
            return Head(linear, transform)
    return None


def last_hidden(model: Any, **named: Any) -> torch.Tensor:
    """What the model without its head gives, [B, T, H]."""
    out: torch.Tensor = model.base_model(**named, use_cache=False)[0]
    return out


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
