"""Which keys a token sees, where keys of several sequences and branches lie beside each other.

Models make their masks of where keys lie in the cache; these are made of the positions that tokens have.

Shapes: B rows, T tokens asked about, S keys.
"""

from typing import Any

import torch

from optcore.errors import RecipeError

FULL = "full_attention"
_SLIDING, _CHUNKED = "sliding_attention", "chunked_attention"
_KNOWN = {FULL, _SLIDING, _CHUNKED}


def kinds_of(config: Any) -> frozenset[str]:
    """The kinds of attention that a model's layers have, as transformers itself reads its configuration.

    Raises `RecipeError` for one that we make no mask for.
    """
    text = config.get_text_config()
    if layers := getattr(text, "layer_types", None):
        kinds = frozenset(layers)
    elif getattr(text, "sliding_window", None) is not None:
        kinds = frozenset((_SLIDING,))
    else:
        kinds = frozenset((_CHUNKED if getattr(text, "attention_chunk_size", None) is not None else FULL,))
    if unknown := kinds - _KNOWN:
        raise RecipeError(
            f"no masks for drafts can be made for {', '.join(sorted(unknown))}, which {type(config).__name__} asks for",
            remedy="use a model with full, sliding or chunked attention, or leave `draft` out",
            field="/chain",
        )
    return kinds


def additive_masks(
    config: Any, asked_BT: torch.Tensor, keys_BS: torch.Tensor, visible_BTS: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor | dict[str, torch.Tensor]:
    """What is added to scores, [B, 1, T, S], by kind where a model has several.

    `asked_BT` and `keys_BS` are positions; `visible_BTS` says which keys are in a token's own past, as far back as that
    goes.
    """
    text = config.get_text_config()
    made = {}
    for kind in kinds_of(config):
        seen_BTS = visible_BTS
        if kind == _SLIDING:
            seen_BTS = seen_BTS & (asked_BT[:, :, None] - keys_BS[:, None] < text.sliding_window)
        elif kind == _CHUNKED:
            size = text.attention_chunk_size
            seen_BTS = seen_BTS & (asked_BT[:, :, None] // size == keys_BS[:, None] // size)
        hidden = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=seen_BTS.device)
        made[kind] = torch.where(seen_BTS, torch.zeros_like(hidden), hidden)[:, None]
    return made if len(made) > 1 else next(iter(made.values()))
