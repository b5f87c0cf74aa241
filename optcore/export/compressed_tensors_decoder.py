"""Reads a compressed-tensors weight back from its files, with nothing but the files to go by.

Written against the published layout and not against our writer, so that a mistake in one of them shows.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optcore.streaming.reader import TensorReader


def decode_weight(folder: Path, reader: TensorReader, name: str) -> torch.Tensor:
    """The weight [N, K] of a quantized linear layer as an engine would use it, float32."""
    layout = _layout(folder)
    scale = reader.tensor(f"{name}.weight_scale").float()
    if layout in ("float-quantized", "int-quantized"):
        return reader.tensor(f"{name}.weight").float() * scale
    if layout == "pack-quantized":
        rows, columns = reader.tensor(f"{name}.weight_shape").tolist()
        codes = _int4(reader.tensor(f"{name}.weight_packed").numpy(), columns)
        return _times_group(torch.from_numpy(codes).view(rows, columns), scale)
    divisor = reader.tensor(f"{name}.weight_global_scale")
    values = _fp4(reader.tensor(f"{name}.weight_packed").numpy())
    return _times_group(torch.from_numpy(values), scale / divisor)


def _layout(folder: Path) -> str:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return str(config["format"])


def _int4(words: np.ndarray, columns: int) -> np.ndarray:
    """Nibbles of little-endian words, lowest first, stored with 8 added."""
    octets = words.astype("<i4").view(np.uint8)
    nibbles = np.stack([octets & 15, octets >> 4], axis=-1).reshape(len(words), -1)
    return nibbles[:, :columns].astype(np.float32) - 8


def _fp4(octets: np.ndarray) -> np.ndarray:
    """E2M1 by its fields: sign, two exponent bits with bias 1, one mantissa bit; exponent 0 is subnormal."""
    codes = np.stack([octets & 15, octets >> 4], axis=-1).reshape(len(octets), -1).astype(np.int32)
    exponent, mantissa = (codes >> 1) & 3, codes & 1
    magnitude = np.where(exponent == 0, mantissa * 0.5, (1 + mantissa * 0.5) * 2.0 ** (exponent - 1))
    return np.where(codes & 8, -magnitude, magnitude).astype(np.float32)


def _times_group(values_NK: torch.Tensor, step_NG: torch.Tensor) -> torch.Tensor:
    groups = step_NG.shape[1]
    return (values_NK.unflatten(1, (groups, -1)) * step_NG.unsqueeze(-1)).flatten(1)
