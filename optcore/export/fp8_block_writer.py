"""Tensors and description of a DeepSeek-style FP8 checkpoint (https://huggingface.co/deepseek-ai/DeepSeek-V3)."""

from collections.abc import Mapping

import torch

from optcore.export.fp8_block_decoder import decode_fp8_block
from optcore.export.layout_writer import Config, Layout
from optcore.export.raw_reader import Array, RawFiles


class Fp8BlockLayout(Layout):
    """`weight` in E4M3 and `weight_scale_inv`, which multiplies despite its name, in float32."""

    def linear(self, name: str) -> Mapping[str, torch.Tensor]:
        """The weight and its block scales."""
        codes, scales = self.state.codes(name)
        return {"weight": codes, "weight_scale_inv": scales.scale.float()}

    def decode(self, files: RawFiles, name: str) -> Array:
        """The weight as an engine decodes it."""
        return decode_fp8_block(files, name)

    def config(self, config: Config) -> Config:
        """`quantization_config` with `quant_method: fp8`."""
        return config | {
            "quantization_config": {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [128, 128],
                # A tied head has no tensor of its own, so it is not among the ignored ones.
                "modules_to_not_convert": sorted({"lm_head", *self.state.description.ignored}),
            }
        }
