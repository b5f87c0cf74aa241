"""Tensors of a Model Optimizer checkpoint."""

from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import torch

from optcore.algorithms.packing import pack_nibbles
from optcore.algorithms.scales import Scales
from optcore.errors import ExportMismatch
from optcore.export.layout_writer import EXACT, Bound, Config, Layout
from optcore.export.modelopt_config import hf_quant_config, quantization_config
from optcore.export.modelopt_decoder import ModeloptDecoder
from optcore.export.modelopt_groups import experts_of, fused_group
from optcore.export.modelopt_multiplier import NVFP4_REACH, amax_of
from optcore.export.raw_reader import Array, RawFiles
from optcore.export.sizes import check_modelopt
from optcore.streaming.reader import TensorReader

if TYPE_CHECKING:
    from optcore.streaming.quantized import QuantizedCheckpoint

Tensors = dict[str, torch.Tensor]
_E4M3_MAX = 448.0
_NVFP4_BOUND = Bound(2.0**-21, 2.0**-140)  # a quotient and two products are rounded, where we divided once


class ModeloptLayout(Layout):
    """Float32 multipliers beside the codes; each scheme has its own tensors."""

    def __init__(self, state: "QuantizedCheckpoint") -> None:
        super().__init__(state)
        self._decoder: ModeloptDecoder | None = None
        self._joint_amax = lru_cache(maxsize=4)(self._largest)
        self._dense_amaxes = lru_cache(maxsize=4)(self._largest_dense)

    def linear(self, name: str) -> Mapping[str, torch.Tensor]:
        """The weight, its scales and its input's."""
        codes, scales = self.state.codes(name)
        check_modelopt(name, self.state.scheme(name), (codes.shape[0], codes.shape[1]))
        scheme = self.state.scheme(name).name
        if scheme.startswith("int4"):
            return {**_int4(codes, scales), **self._pre_scale(name, codes, scales)} | (
                self._w4a8(name) if scheme != "int4" else {}
            )
        if scheme.startswith("nvfp4"):
            return self._nvfp4(name, codes, scales) | self._input(name)
        shape: tuple[int, ...] = {"fp8": (), "fp8_dynamic": (-1,)}.get(scheme) or ()
        if scheme == "fp8_block":
            return {"weight": codes, "weight_scale": _tiles(scales.scale)}
        return {"weight": codes, "weight_scale": scales.scale.float().reshape(shape), **self._input(name)}

    def attention(self, name: str) -> Mapping[str, torch.Tensor]:
        """Scales and biases of keys and values, below the projections that make them."""
        tensors = {}
        for suffix, tensor in self.state.kv_tensors(name).items():
            kind, _, what = suffix.partition("_")
            place = self._projection(name, kind)
            if what == "bias":
                tensors[f"{place}.{kind}_bias"] = tensor
            else:  # Model Optimizer writes amax / 448, for NVFP4 too
                is_divisor = what == "global_scale"
                scale = _quotient(amax_of(tensor.item(), tuple), _E4M3_MAX) if is_divisor else tensor.float()
                tensors[f"{place}.{kind}_scale"] = scale.reshape(())
        return tensors

    def decode(self, files: RawFiles, name: str) -> Array:
        """The weight as an engine decodes it."""
        if self._decoder is None or self._decoder.files is not files:
            self._decoder = ModeloptDecoder(files)
        return self._decoder.weight(name)

    def config(self, config: Config) -> Config:
        """`quantization_config` with `quant_method: modelopt`."""
        return config | {"quantization_config": quantization_config(self.state.description)}

    def companions(self) -> Mapping[str, Config]:
        """The same facts in Model Optimizer's own file."""
        return {"hf_quant_config.json": hf_quant_config(self.state.description)}

    def bound(self, name: str) -> Bound:
        """Bit for bit, but for NVFP4, whose divisor becomes a multiplier."""
        return _NVFP4_BOUND if self.state.scheme(name).name.startswith("nvfp4") else EXACT

    def _input(self, name: str) -> Tensors:
        scale = self.state.input_scale(name)
        if scale is None:
            return {}
        if self.state.scheme(name).weights.strategy != "tensor_group":
            return {"input_scale": scale.float().reshape(())}
        measured = self.state.description.linears[name].input_amax
        amax = amax_of(scale.item(), lambda: () if measured is None else (measured,))
        return {"input_scale": _quotient(amax, NVFP4_REACH)}

    def _nvfp4(self, name: str, codes_NK: torch.Tensor, scales: Scales) -> Tensors:
        assert scales.global_scale is not None
        # Asked by folder, so that layers which share a divisor get one answer.
        amax = amax_of(scales.global_scale.item(), lambda: self._dense_amaxes(name.rpartition(".")[0]))
        return {
            "weight": pack_nibbles(codes_NK),
            "weight_scale": _one_where_empty(codes_NK, scales.scale),
            "weight_scale_2": _quotient(amax, NVFP4_REACH),
        }

    def _pre_scale(self, name: str, codes_NK: torch.Tensor, scales: Scales) -> Tensors:
        """Readers look for it in experts and in layers that run alone, and nowhere else."""
        if len(fused_group(name, self.state.description.modules)) > 1 and not experts_of(name):
            return {}
        # Engines assert that it has the model's type, which is that of the stored scales.
        return {"pre_quant_scale": torch.ones(codes_NK.shape[1], dtype=scales.scale.dtype)}

    def _w4a8(self, name: str) -> Tensors:
        """The FP8 range of the decoded weight. Readers assert that fused layers share it."""
        group = fused_group(name, self.state.description.linears)
        second = _quotient(self._joint_amax(group), _E4M3_MAX)
        given = self._input(name)
        if not given:
            raise ExportMismatch(f"{name} has no calibrated input scale, which W4A8_AWQ needs")
        return {"weight_scale_2": second, **given}

    def _largest(self, group: tuple[str, ...]) -> float:
        return max(float(self.state.weight(name).abs().max()) for name in group) or 1.0

    @cached_property
    def _dense(self) -> TensorReader:
        return TensorReader(self.state.folder)

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        """The quantized layers by the module that they are in."""
        found: dict[str, list[str]] = {}
        for name in self.state.description.linears:
            found.setdefault(name.rpartition(".")[0], []).append(name)
        return found

    def _largest_dense(self, parent: str) -> tuple[float, ...]:
        """Of the weights before rounding, where each has a tensor of its own."""
        stored = (f"{name}.weight" for name in self._children.get(parent, ()))
        return tuple(float(self._dense.tensor(weight).abs().max()) for weight in stored if weight in self._dense)

    def _projection(self, attention: str, kind: str) -> str:
        """The module below which readers look for a key's or value's scale."""
        candidates = (f"{attention}.{kind}_proj", f"{attention}.qkv_proj")
        known = set(self.state.names)
        kept = (c for c in candidates if any(f"{c}.{s}" in known for s in ("weight", "weight_packed")))
        return next(kept, attention)


def _quotient(amax: float, reach: float) -> torch.Tensor:
    return torch.tensor(amax / reach, dtype=torch.float32)


def _one_where_empty(codes_NK: torch.Tensor, scale_NG: torch.Tensor) -> torch.Tensor:
    """Model Optimizer gives blocks of zeros the scale 1, compressed-tensors the epsilon of E4M3."""
    is_empty_NG = ((codes_NK & 7) == 0).unflatten(1, (scale_NG.shape[1], -1)).all(-1)
    return torch.where(is_empty_NG, 1.0, scale_NG.float()).to(scale_NG.dtype)


def _int4(codes_NK: torch.Tensor, scales: Scales) -> Tensors:
    """Two rows share a byte, in two's complement."""
    nibbles = codes_NK.view(torch.uint8) & 15
    packed = nibbles[0::2] | (nibbles[1::2] << 4)
    return {"weight": packed, "weight_scale": scales.scale.float()}


def _tiles(scale: torch.Tensor) -> torch.Tensor:
    """Block scales as Model Optimizer stores them, [N/128, 1, K/128, 1]."""
    return scale.float()[:, None, :, None]
