"""Scales of the KV cache: measured where attention hands its keys and values over."""

import torch
from torch import nn

from optcore.errors import RecipeError
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import linears


def no_cache(index: int) -> RecipeError:
    """For a layer that hands no keys and values to its cache."""
    return RecipeError(
        f"layer {index} has no attention whose keys and values could be measured",
        remedy="leave `kv_cache` out",
        field="/chain",
    )


def check_kv_cache(decoder: Decoder) -> None:
    """Refuse models whose cache does not hold keys and values."""
    if getattr(decoder.model.config.get_text_config(), "kv_lora_rank", None):
        raise RecipeError(
            "the model caches a latent (MLA), whose scales are not those of keys and values",
            remedy="leave `kv_cache` out",
            field="/chain",
        )
    if not any(decoder.has_key_value_cache(index) for index in range(len(decoder))):
        raise no_cache(0)


def attention_name(decoder: Decoder, index: int, layer: nn.Module) -> str:
    """The attention module's name in the checkpoint."""
    attention = attention_path(layer)
    inside = next((path for path in linears(layer) if attention and path.startswith(f"{attention}.")), None)
    if inside is None:
        raise no_cache(index)
    stored = decoder.names.stored_module(f"{decoder.layer_name(index)}.{inside}")
    return stored.removesuffix(inside.removeprefix(attention))


def attention_path(layer: nn.Module) -> str:
    """Where attention is in a layer: transformers gives it the index of its cache. Empty where there is none."""
    return next((name for name, module in layer.named_modules() if name and hasattr(module, "layer_idx")), "")


def named(attention: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scales under their names in the checkpoint."""
    return {f"{attention}.{suffix}": tensor for suffix, tensor in tensors.items()}
