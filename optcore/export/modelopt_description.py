"""What a Model Optimizer checkpoint says of itself, as TensorRT-LLM understands it."""

import fnmatch
import re
from collections.abc import Iterator
from typing import Any

from optcore.export.modelopt_layouts import KV_ALGORITHMS, LAYOUTS

_MIXED = "MIXED_PRECISION"


class Description:
    """The `quantization` of `hf_quant_config.json`, which wins over the copy in `config.json`."""

    def __init__(self, quantization: dict[str, Any]) -> None:
        self.quantization = quantization
        self._default = quantization.get("quant_algo")
        self._layers: dict[str, dict[str, Any]] = quantization.get("quantized_layers") or {}
        self._excluded: list[str] = quantization.get("exclude_modules") or []

    @property
    def kv_cache(self) -> str | None:
        """The algorithm of the KV cache; None where it is not quantized."""
        return self.quantization.get("kv_cache_quant_algo")

    @property
    def listed(self) -> frozenset[str]:
        """Layers that have an entry of their own."""
        return frozenset(self._layers)

    def algorithm(self, name: str) -> str | None:
        """A layer's `quant_algo`; None where nothing is said of it."""
        if self._default == _MIXED:
            return (self._layers.get(name) or {}).get("quant_algo")
        return self._default

    def excludes(self, name: str) -> bool:
        """Whether a layer is left alone: one pattern matches it or a module that it is in."""
        parts = name.split(".")
        paths = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        return any(_matches(path, pattern) for pattern in self._excluded for path in paths)

    def faults(self) -> Iterator[str]:
        """Algorithms that the loader does not know, and settings that they do not have."""
        if self._default == _MIXED and not self._layers:
            yield f"`quantized_layers` is empty, and {_MIXED} reads every layer's format there"
        if self._default not in (None, _MIXED):
            yield from _algorithm_faults("`quant_algo`", self.quantization)
        for name, entry in self._layers.items():
            yield from _algorithm_faults(name, entry)
        if self.kv_cache not in (None, *KV_ALGORITHMS):
            yield f"`kv_cache_quant_algo` is {self.kv_cache!r}, and the loader knows {', '.join(KV_ALGORITHMS)}"


def disagreements(nested: dict[str, Any], flat: dict[str, Any]) -> Iterator[str]:
    """Facts that `hf_quant_config.json` and the `quantization_config` of `config.json` do not share.

    One engine reads the one and another the other, and neither complains.
    """
    if (nested.get("producer") or {}).get("name") != "modelopt":
        yield "`producer.name` in hf_quant_config.json is not `modelopt`, by which loaders know the layout"
    if not str(flat.get("quant_method", "")).startswith("modelopt"):
        yield "`quant_method` in config.json is not `modelopt`, by which loaders know the layout"
    told = nested.get("quantization") or {}
    pairs = [(key, told.get(key), flat.get(key)) for key in ("quant_algo", "group_size", "quantized_layers")]
    pairs.append(("exclude_modules", sorted(told.get("exclude_modules") or []), sorted(flat.get("ignore") or [])))
    pairs.append(("kv_cache_quant_algo", told.get("kv_cache_quant_algo"), _kv_algorithm(flat.get("kv_cache_scheme"))))
    for key, one, other in pairs:
        if one != other:
            yield f"`{key}` is {_short(one)} in hf_quant_config.json, and {_short(other)} in config.json"


def _algorithm_faults(where: str, entry: dict[str, Any]) -> Iterator[str]:
    algorithm = entry.get("quant_algo")
    layout = LAYOUTS.get(str(algorithm))
    if layout is None:
        yield f"{where} is {algorithm!r}, and the loader knows {', '.join(LAYOUTS)}"
        return
    has_groups = layout.group > 1 and layout.block == 1  # blocks of 128 x 128 are not told
    if has_groups and entry.get("group_size") != layout.group:
        yield f"`group_size` of {where} is {entry.get('group_size')!r}, and {algorithm} has {layout.group}"
    if "pre_quant_scale" in layout.tensors and (entry.get("has_zero_point"), entry.get("pre_quant_scale")) != (
        False,
        True,
    ):
        yield f"`has_zero_point` or `pre_quant_scale` of {where} is not what {algorithm} stores: false and true"


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return fnmatch.fnmatchcase(name, pattern)


def _kv_algorithm(scheme: Any) -> str | None:
    if isinstance(scheme, dict):
        is_fp8 = scheme.get("type") == "float" and scheme.get("num_bits") == 8
        return "FP8" if is_fp8 else f"{scheme.get('type')} of {scheme.get('num_bits')} bits"
    return None if scheme is None else str(scheme)


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."
