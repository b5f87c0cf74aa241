"""Reads Model Optimizer weights back from their bytes, written against the published layout."""

import json
from typing import Any

import numpy as np

from optcore.export.raw_reader import Array, RawFiles, e2m1, e4m3


class ModeloptDecoder:
    """Decodes by what `hf_quant_config.json` says, as TensorRT-LLM does."""

    def __init__(self, files: RawFiles) -> None:
        self.files = files
        document: dict[str, Any] = json.loads((files.folder / "hf_quant_config.json").read_text())["quantization"]
        self._default = str(document["quant_algo"])
        self._layers: dict[str, Any] = document.get("quantized_layers", {})

    def weight(self, name: str) -> Array:
        """The weight [N, K], float32."""
        algorithm = str(self._layers[name]["quant_algo"]) if self._layers else self._default
        codes, scale = self.files.bits(f"{name}.weight"), self.files.floats(f"{name}.weight_scale")
        if algorithm in ("W4A16_AWQ", "W4A8_AWQ"):
            values = _int4(codes)
            if f"{name}.pre_quant_scale" in self.files.names:  # else it is folded into the norm before it
                values = values / self.files.floats(f"{name}.pre_quant_scale")
        elif algorithm in ("NVFP4", "W4A16_NVFP4"):
            values = e2m1(np.stack([codes % 16, codes // 16], axis=-1).reshape(len(codes), -1))
            scale = scale * self.files.floats(f"{name}.weight_scale_2")
        else:
            values = e4m3(codes)
        weight: Array = values * _spread(scale, *values.shape)
        return weight


def _int4(octets: Array) -> Array:
    """Octet (i, k) holds rows 2i (low half) and 2i + 1 of column k, each in two's complement."""
    pairs = np.stack([octets % 16, octets // 16], axis=1).astype(np.int32)
    signed = np.where(pairs > 7, pairs - 16, pairs).astype(np.float32)
    return signed.reshape(-1, octets.shape[1])


def _spread(scale: Array, rows: int, columns: int) -> Array:
    """One scale for each value: of the tensor, of its row, of its group in the row, or of its square block."""
    if scale.ndim == 0:
        return np.broadcast_to(scale, (rows, columns))
    if scale.ndim == 1:
        return np.broadcast_to(scale[:, None], (rows, columns))
    if scale.ndim == 4:
        return np.repeat(np.repeat(scale[:, 0, :, 0], rows // len(scale), axis=0), columns // scale.shape[2], axis=1)
    return np.repeat(scale, columns // scale.shape[1], axis=1)
