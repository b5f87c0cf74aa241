"""What AutoAWQ and GPTQ checkpoints share: integer codes in groups, with scales in float16."""

import re
from typing import NamedTuple

import torch

from optcore.algorithms.codes import decode
from optcore.errors import RecipeError
from optcore.export.layout_writer import EXACT, Bound, Layout
from optcore.export.sizes import check_words

_HALF_ROUNDING = 2.0**-11
_HALF_SMALLEST = 2.0**-24
_EXPERTS = re.compile(r"(?<=\.experts)\.\d+\..*")
_FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
}
"""What vLLM and SGLang call the matrices that they put together, and look up in `dynamic`."""


class Groups(NamedTuple):
    """A weight in integers: (codes - zero point) * scale."""

    codes_NK: torch.Tensor
    """int8, signed."""
    zero_NG: torch.Tensor
    """int8, signed; zero where the format is symmetric."""
    scale_NG: torch.Tensor
    """float16."""


class HalfScaleLayout(Layout):
    """Integer codes with float16 scales.

    Every bfloat16 scale from 2^-17 on is a float16 number too, and then the weight decodes bit for bit. Another one is
    rounded: by at most 2^-11 of itself, or half of float16's smallest step.
    """

    @property
    def left_alone(self) -> set[str]:
        """Modules without codes, and what engines make of several: their parts are all left alone, or none is."""
        names = set(self.state.description.ignored)
        parts = [name.rpartition(".") for name in names]
        fused = {f"{parent}.{_FUSED[own]}" for parent, _, own in parts if own in _FUSED}
        return names | fused | {_EXPERTS.sub("", name) for name in names if _EXPERTS.search(name)}

    def groups(self, name: str) -> Groups:
        """Codes, zero points and scales of a linear layer. Raises `RecipeError` when they do not fit the layout."""
        codes, scales = self.state.codes(name)
        check_words(name, self.state.scheme(name), (codes.shape[0], codes.shape[1]))
        half = scales.scale.float().to(torch.float16)
        if not half.isfinite().all():
            raise RecipeError(
                f"{name} has a scale of {scales.scale.float().abs().max().item():.3g}, and float16 ends at 65504",
                remedy="choose `compressed-tensors`, which keeps the model's own type, or `ignore` this layer",
                field="/target/format",
            )
        zero = torch.zeros_like(scales.scale, dtype=torch.int8) if scales.zero_point is None else scales.zero_point
        return Groups(codes, zero, half)

    def bound(self, name: str) -> Bound:
        """Exact where the scales are float16 numbers; else what rounding them can do to the largest code."""
        codes, scales = self.state.codes(name)
        step = scales.scale.float()
        if torch.equal(step.to(torch.float16).float(), step):
            return EXACT
        ones = scales._replace(scale=torch.ones_like(step))
        reach = decode(codes, ones, self.state.scheme(name).weights).abs().max().item()
        return Bound(_HALF_ROUNDING * (1 + 2**-10), reach * _HALF_SMALLEST / 2)


def pack_words(unsigned: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned codes [R, C] to int32 words [R, C * bits / 32]: code c has bits `bits * (c mod 32 / bits)` on."""
    per_word = 32 // bits
    shifts = torch.arange(per_word, device=unsigned.device) * bits
    words = (unsigned.to(torch.int64).unflatten(1, (-1, per_word)) << shifts).sum(-1)
    return words.to(torch.uint32).view(torch.int32)
