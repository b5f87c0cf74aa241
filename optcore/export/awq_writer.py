"""Tensors and description of an AutoAWQ gemm checkpoint."""

from collections.abc import Mapping

import torch

from optcore.export.awq_decoder import decode_awq
from optcore.export.half_scale_writer import HalfScaleLayout, pack_words
from optcore.export.layout_writer import Config
from optcore.export.raw_reader import Array, RawFiles

# Nibble i of a word holds output ORDER[i] of its eight: AutoAWQ's kernel unpacks pairs of halves in this order.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


class AwqLayout(HalfScaleLayout):
    """`qweight` [K, N/8] and `qzeros` [K/g, N/8], eight outputs a word; `scales` [K/g, N]. Codes count from 0 to 15."""

    def linear(self, name: str) -> Mapping[str, torch.Tensor]:
        """Words of codes and zero points, and float16 scales."""
        codes_NK, zero_NG, scale_NG = self.groups(name)
        return {
            "qweight": pack_awq(codes_NK.to(torch.int16).T + 8),
            "qzeros": pack_awq(zero_NG.to(torch.int16).T + 8),
            "scales": scale_NG.T.contiguous(),
        }

    def decode(self, files: RawFiles, name: str) -> Array:
        """The weight as an engine decodes it."""
        return decode_awq(files, name)

    def config(self, config: Config) -> Config:
        """`quantization_config` with `quant_method: awq`. Symmetric formats have the zero point 8 everywhere."""
        (scheme,) = self.state.description.schemes
        return config | {
            "quantization_config": {
                "quant_method": "awq",
                "version": "gemm",
                "bits": 4,
                "group_size": scheme.weights.group_size,
                "zero_point": True,
                "modules_to_not_convert": sorted({"lm_head", *self.left_alone}),
            }
        }


def pack_awq(unsigned: torch.Tensor) -> torch.Tensor:
    """Codes 0..15 [R, N] to int32 words [R, N/8] in AutoAWQ's order."""
    return pack_words(unsigned.unflatten(1, (-1, 8))[..., list(ORDER)].flatten(1), 4)
