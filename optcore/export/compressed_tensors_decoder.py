"""Reads a compressed-tensors weight back from its files, with nothing but the files to go by.

Written against the published layout and not against our writer, so that a mistake in one of them shows.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optcore.export.raw_reader import e2m1
from optcore.streaming.reader import TensorReader


class CompressedDecoder:
    """A finished folder, read as an engine reads it."""

    def __init__(self, folder: Path) -> None:
        self._reader = TensorReader(folder)
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
        self._groups: list[dict[str, Any]] = list(config["config_groups"].values())

    def weight(self, name: str) -> torch.Tensor:
        """The weight [N, K] of a quantized linear layer as an engine would use it, float32."""
        group = self._group(name)
        decode = {
            "float-quantized": self._plain,
            "int-quantized": self._plain,
            "pack-quantized": self._packed_integers,
            "nvfp4-pack-quantized": self._nvfp4,
            "mxfp4-pack-quantized": self._mxfp4,
            "mxfp8-quantized": self._mxfp8,
        }[group["format"]]
        return decode(name, group["weights"])

    def _group(self, name: str) -> dict[str, Any]:
        for group in self._groups:
            for target in group["targets"]:
                if target in ("Linear", name) or (target.startswith("re:") and re.match(target[3:], name)):
                    return group
        raise KeyError(f"no group of the configuration holds {name}")

    def _plain(self, name: str, args: dict[str, Any]) -> torch.Tensor:
        values, scale = self._tensor(name, "weight").float(), self._tensor(name, "weight_scale").float()
        if args["strategy"] == "block":
            rows, columns = args["block_structure"]
            scale = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
            scale = scale[: values.shape[0], : values.shape[1]]
        return values * scale

    def _packed_integers(self, name: str, args: dict[str, Any]) -> torch.Tensor:
        bits, scale = args["num_bits"], self._tensor(name, "weight_scale").float()
        rows, columns = self._tensor(name, "weight_shape").tolist()
        codes = _integers(self._tensor(name, "weight_packed").numpy(), bits, columns)
        values = torch.from_numpy(codes).view(rows, scale.shape[1], -1)
        if not args["symmetric"]:
            packed = self._tensor(name, "weight_zero_point").numpy().T
            zeros = torch.from_numpy(_integers(packed, bits, rows)).T
            values = values - zeros.unsqueeze(-1)
        return (values * scale.unsqueeze(-1)).flatten(1)

    def _nvfp4(self, name: str, args: dict[str, Any]) -> torch.Tensor:
        divisor = self._tensor(name, "weight_global_scale")
        return self._fp4(name, self._tensor(name, "weight_scale").float() / divisor)

    def _mxfp4(self, name: str, args: dict[str, Any]) -> torch.Tensor:
        return self._fp4(name, torch.exp2(self._tensor(name, "weight_scale").float() - 127))

    def _mxfp8(self, name: str, args: dict[str, Any]) -> torch.Tensor:
        step = torch.exp2(self._tensor(name, "weight_scale").float() - 127)
        return _times_group(self._tensor(name, "weight").float(), step)

    def _fp4(self, name: str, step_NG: torch.Tensor) -> torch.Tensor:
        octets = self._tensor(name, "weight_packed").numpy()
        values = e2m1(np.stack([octets & 15, octets >> 4], axis=-1).reshape(len(octets), -1))
        return _times_group(torch.from_numpy(values), step_NG)

    def _tensor(self, name: str, suffix: str) -> torch.Tensor:
        return self._reader.tensor(f"{name}.{suffix}")


def _integers(words: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """Unsigned fields of `bits` bits from a row's little-endian bit stream, lowest first, stored with half the range
    added. A field may lie across two words."""
    octets = np.ascontiguousarray(words.astype("<i4")).view(np.uint8)
    stream = np.unpackbits(octets, axis=-1, bitorder="little")[:, : columns * bits]
    weights = 1 << np.arange(bits)
    codes = (stream.reshape(len(words), columns, bits) * weights).sum(-1)
    values: np.ndarray = codes.astype(np.float32) - 2 ** (bits - 1)
    return values


def _times_group(values_NK: torch.Tensor, step_NG: torch.Tensor) -> torch.Tensor:
    groups = step_NG.shape[1]
    return (values_NK.unflatten(1, (groups, -1)) * step_NG.unsqueeze(-1)).flatten(1)
