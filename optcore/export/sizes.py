"""Sizes of linear layers that layouts have no place for: asked before the chain that leaves them and after it.

Legend: N outputs, K inputs. `place` is where the recipe names the target, a JSON Pointer.
"""

from optcore.errors import RecipeError
from optcore.schemes import Scheme

ShapeNK = tuple[int, int]


def check_modelopt(name: str, scheme: Scheme, shape_NK: ShapeNK, place: str = "/target") -> None:
    """Raises `RecipeError` for INT4 in an odd number of outputs, and for partial blocks of FP8."""
    rows, columns = shape_NK
    if scheme.name.startswith("int4") and rows % 2:
        raise RecipeError(
            f"{name} has {rows} outputs, and this target packs two of them into a byte",
            remedy="`ignore` this layer, or choose `compressed-tensors`",
            field=f"{place}/format",
        )
    if (tile := scheme.weights.block) and (rows % tile[0] or columns % tile[1]):
        raise RecipeError(
            f"{name} is {rows} x {columns}, and this target knows whole blocks of {tile[0]} x {tile[1]} only",
            remedy="`ignore` this layer, or choose the target `fp8`",
            field=f"{place}/format",
        )


def check_words(name: str, scheme: Scheme, shape_NK: ShapeNK, place: str = "/target") -> None:
    """Raises `RecipeError` for sides that are no whole number of the 32-bit words of AutoAWQ and GPTQ."""
    rows, columns = shape_NK
    per_word = 32 // scheme.weights.bits
    if rows % per_word or columns % per_word:
        raise RecipeError(
            f"{name} is {rows} x {columns}, and this target packs {per_word} values along either side into a word",
            remedy="`ignore` this layer, or choose `compressed-tensors`",
            field=f"{place}/format",
        )
