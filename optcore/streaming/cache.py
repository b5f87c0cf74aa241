"""Stand-ins for a KV cache: attention hands them keys and values, after rotary embedding, as it would a real one."""

import torch

from optcore.algorithms.activations import fake_quantize_activation
from optcore.schemes import QuantArgs

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


class ObservingCache:
    """Remembers the largest magnitudes of keys and values."""

    def __init__(self) -> None:
        self.keys_amax = 0.0
        self.values_amax = 0.0

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object) -> KeysAndValues:
        """What attention calls; returns its input."""
        self.keys_amax = max(self.keys_amax, keys.abs().amax().item())
        self.values_amax = max(self.values_amax, values.abs().amax().item())
        return keys, values


class RoundingCache:
    """Rounds keys and values to the cache's number format."""

    def __init__(self, args: QuantArgs, k_scale: torch.Tensor, v_scale: torch.Tensor) -> None:
        self.args = args
        self.k_scale = k_scale
        self.v_scale = v_scale

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object) -> KeysAndValues:
        """What attention calls; returns what it would read back."""
        rounded_keys = fake_quantize_activation(keys, self.args, self.k_scale)
        return rounded_keys, fake_quantize_activation(values, self.args, self.v_scale)
