"""Quantized linear layers as operators of ONNX, for torch's exporter to put into a graph.

Legend: N outputs, K inputs. A layer is written in standard operators alone, https://onnx.ai/onnx/operators/, and every
number in it is one of the quantization pass's. ONNX Runtime fuses those of W8A8 into one multiplication of integers,
`MatMulIntegerToFloat`. Its own dynamic quantization has one scale for all tokens; here each token keeps its own.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.onnx.ops import symbolic

from optcore.algorithms.rounding import scale_reach
from optcore.schemes import QuantArgs

if TYPE_CHECKING:
    from optcore.streaming.quantized import QuantizedCheckpoint

OPSET = 21
"""Of ONNX 1.16, which ONNX Runtime knows since 1.18."""
MODULE = "lathe.module"
"""Key of the metadata that says which layer a node belongs to: initializers that are equal are stored once, under one
layer's name."""


class WeightOnly(nn.Module):
    """y = x (code * scale)^T + bias.

    The weight is made by `Cast` and `Mul`, which ONNX Runtime folds when it loads the file: it then computes as fast
    as with a float weight. A `DequantizeLinear` it would turn into `MatMulNBits`, which rounds inputs to 8 bits.
    """

    def __init__(self, name: str, codes_NK: torch.Tensor, scale_N: torch.Tensor, bias_N: torch.Tensor | None) -> None:
        super().__init__()
        self._about = {MODULE: name}
        self.register_buffer("codes_KN", codes_NK.T.contiguous())
        self.register_buffer("scale_N", scale_N)
        self.bias_N = bias_N

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] to [..., N], multiplied in float32 whatever the type of x."""
        y = self._multiplied(x.float())
        return (y if self.bias_N is None else y + self.bias_N.float()).to(x.dtype)

    def _multiplied(self, x: torch.Tensor) -> torch.Tensor:
        codes_KN = symbolic(
            "::Cast",
            (self.codes_KN,),
            {"to": 1},  # float32
            dtype=torch.float32,
            shape=self.codes_KN.shape,
            version=OPSET,
            metadata_props=self._about,
        )
        return x @ (codes_KN * self.scale_N)

    def _dequantized_weight(self, zero_N: torch.Tensor) -> torch.Tensor:
        return symbolic(
            "::DequantizeLinear",
            (self.codes_KN, self.scale_N, zero_N),
            {"axis": 1},
            dtype=torch.float32,
            shape=self.codes_KN.shape,
            version=OPSET,
            metadata_props=self._about,
        )

    def _rounded(self, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        """The input on its grid of integers, the pair of operators that engines look for."""
        kept = {"shape": x.shape, "version": OPSET, "metadata_props": self._about}
        codes = symbolic("::QuantizeLinear", (x, scale, zero), dtype=torch.uint8, **kept)
        return symbolic("::DequantizeLinear", (codes, scale, zero), dtype=torch.float32, **kept)


class StaticInput(WeightOnly):
    """The same with inputs rounded to int8 by one calibrated scale."""

    def __init__(
        self,
        name: str,
        codes_NK: torch.Tensor,
        scale_N: torch.Tensor,
        bias_N: torch.Tensor | None,
        input_scale: torch.Tensor,
    ) -> None:
        super().__init__(name, codes_NK, scale_N, bias_N)
        self.register_buffer("input_scale", input_scale)
        self.register_buffer("zero", torch.tensor(128, dtype=torch.uint8))
        self.register_buffer("zero_N", torch.zeros(len(scale_N), dtype=torch.int8))

    def _multiplied(self, x: torch.Tensor) -> torch.Tensor:
        return self._rounded(x, self.input_scale, self.zero) @ self._dequantized_weight(self.zero_N)


class TokenInput(StaticInput):
    """The same with a scale for each token, found when the model runs: inputs are divided by it, rounded in steps of
    one, and the products multiplied by it."""

    def __init__(
        self, name: str, codes_NK: torch.Tensor, scale_N: torch.Tensor, bias_N: torch.Tensor | None, args: QuantArgs
    ) -> None:
        super().__init__(name, codes_NK, scale_N, bias_N, torch.ones(()))
        self._reach = scale_reach(args)

    def _multiplied(self, x: torch.Tensor) -> torch.Tensor:
        scale = (x.abs().amax(-1, keepdim=True) / self._reach).clamp(min=torch.finfo(torch.float32).tiny)
        return super()._multiplied(x / scale) * scale


def rounded_linear(state: "QuantizedCheckpoint", name: str, bias_N: torch.Tensor | None) -> nn.Module:
    """The module of a quantized linear layer, by its name in the checkpoint."""
    codes_NK, scales = state.codes(name)
    scale_N, args = scales.step().flatten(), state.scheme(name).activations
    if args is None:
        return WeightOnly(name, codes_NK, scale_N, bias_N)
    if args.dynamic:
        return TokenInput(name, codes_NK, scale_N, bias_N, args)
    input_scale = state.input_scale(name)
    assert input_scale is not None
    return StaticInput(name, codes_NK, scale_N, bias_N, input_scale.float().reshape(()))


@contextmanager
def replaced(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """The model with some of its modules replaced, by path; put back afterwards."""
    originals = {path: model.get_submodule(path) for path in modules}
    for path, module in modules.items():
        model.set_submodule(path, module)
    try:
        yield
    finally:
        for path, module in originals.items():
            model.set_submodule(path, module)
