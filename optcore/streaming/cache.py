"""Stand-ins for a KV cache: attention hands them keys and values, after rotary embedding, as it would a real one."""

from collections.abc import Mapping
from typing import Any

import torch

from optcore.algorithms.kv_cache import ChannelStatistics, fake_quantize_states, measured_tensors, rotated
from optcore.schemes import QuantArgs

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


class EmptyCache:
    """What models ask a cache besides `update`: this one has seen nothing, and keeps nothing between forwards.

    Layers with convolutions or recurrent states (hybrid models) get back what they hand over, as in a prefill.
    """

    is_compileable = False

    def get_seq_length(self, layer: int = 0) -> int:
        """Tokens before this forward."""
        return 0

    def get_max_length(self, layer: int | None = None) -> int:
        """No bound."""
        return -1

    def get_mask_sizes(self, query_length: int, layer: int) -> tuple[int, int]:
        """How many keys a mask covers, and how many lie before them."""
        return query_length, 0

    def has_previous_state(self, *_: int, **__: int) -> bool:
        """Whether a recurrent layer goes on from a state."""
        return False

    def update_conv_state(self, states: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        """Inputs of a convolution."""
        return states

    update_recurrent_state = update_conv_state
    update_indexer = update_conv_state


class ObservingCache(EmptyCache):
    """Remembers range and mean of every channel of keys and values; of keys as `rotate` would have them stored."""

    def __init__(self, *, rotate: bool = False) -> None:
        self.rotate = rotate
        self._seen: dict[str, ChannelStatistics] = {}

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object) -> KeysAndValues:
        """What attention calls; returns its input."""
        self._observe("k", rotated(keys) if self.rotate else keys)
        self._observe("v", values)
        return keys, values

    @property
    def was_used(self) -> bool:
        """Whether a layer handed its keys and values over."""
        return bool(self._seen)

    def tensors(self, args: QuantArgs, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """What the format stores for the layer: `k_scale` or `k_global_scale`, `k_bias`, and the same of values."""
        return {
            f"{kind}_{name}": tensor
            for kind, seen in self._seen.items()
            for name, tensor in measured_tensors(seen, args, dtype).items()
        }

    def _observe(self, kind: str, states_BHTD: torch.Tensor) -> None:
        found = ChannelStatistics.of(states_BHTD)
        self._seen[kind] = self._seen[kind] + found if kind in self._seen else found


class RoundingCache(EmptyCache):
    """Rounds keys and values to the cache's number format.

    With `rotate` keys are rotated, rounded and rotated back, which gives the products that an engine gets by rotating
    queries too.
    """

    def __init__(self, args: QuantArgs, tensors: Mapping[str, torch.Tensor], *, rotate: bool = False) -> None:
        self.args = args
        self.tensors = tensors
        self.rotate = rotate

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: object, **__: object) -> KeysAndValues:
        """What attention calls; returns what it would read back."""
        kept = self._round("k", keys, rotate=self.rotate)
        return rotated(kept).to(keys.dtype) if self.rotate else kept, self._round("v", values)

    def _round(self, kind: str, states: torch.Tensor, *, rotate: bool = False) -> torch.Tensor:
        # Moved at the first call: a copy from the machine's memory makes the host wait for a GPU.
        self.tensors = {name: tensor.to(states.device) for name, tensor in self.tensors.items()}
        scale = self.tensors.get(f"{kind}_scale", self.tensors.get(f"{kind}_global_scale"))
        return fake_quantize_states(states, self.args, scale, self.tensors.get(f"{kind}_bias"), rotate=rotate)


class RoundedCache:
    """A real cache behind a rounding one: what attention reads back is what an engine's cache would hold."""

    def __init__(self, cache: Any, rounding: RoundingCache) -> None:
        self._cache = cache
        self._rounding = rounding

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *more: Any, **named: Any) -> KeysAndValues:
        """What attention calls; returns all that is kept, these behind what was before."""
        kept: KeysAndValues = self._cache.update(*self._rounding.update(keys, values, layer), layer, *more, **named)
        return kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)
