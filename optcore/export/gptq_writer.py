"""Tensors and description of a GPTQ checkpoint, version 1."""

import re
from collections.abc import Mapping

import torch

from optcore.export.gptq_decoder import decode_gptq
from optcore.export.half_scale_writer import HalfScaleLayout, pack_words
from optcore.export.layout_writer import Config
from optcore.export.raw_reader import Array, RawFiles


class GptqLayout(HalfScaleLayout):
    """`qweight` [K b/32, N], inputs packed in order; `qzeros` [K/g, N b/32]; `scales` [K/g, N]; `g_idx` [K]."""

    def linear(self, name: str) -> Mapping[str, torch.Tensor]:
        """Words of codes and zero points, float16 scales and each input's group."""
        codes_NK, zero_NG, scale_NG = self.groups(name)
        bits, groups = self.state.scheme(name).weights.bits, scale_NG.shape[1]
        middle = 2 ** (bits - 1)
        return {
            "qweight": pack_words(codes_NK.to(torch.int16) + middle, bits).T.contiguous(),
            "qzeros": pack_words(zero_NG.to(torch.int16).T + middle - 1, bits),  # version 1 stores one less
            "scales": scale_NG.T.contiguous(),
            "g_idx": torch.arange(codes_NK.shape[1], dtype=torch.int32) // (codes_NK.shape[1] // groups),
        }

    def decode(self, files: RawFiles, name: str) -> Array:
        """The weight as an engine decodes it."""
        return decode_gptq(files, name, self._bits)

    def config(self, config: Config) -> Config:
        """`quantization_config` with `quant_method: gptq`; layers left alone are named by `dynamic` rules."""
        (scheme,) = self.state.description.schemes
        return config | {
            "quantization_config": {
                "quant_method": "gptq",
                "checkpoint_format": "gptq",
                "bits": self._bits,
                "group_size": scheme.weights.group_size or -1,
                "sym": True,
                "desc_act": False,
                "lm_head": False,
                "pack_dtype": "int32",
                "dynamic": {f"-:^{re.escape(name)}$": {} for name in sorted(self.left_alone - {"lm_head"})},
            }
        }

    @property
    def _bits(self) -> int:
        (scheme,) = self.state.description.schemes
        return scheme.weights.bits
