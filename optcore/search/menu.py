"""The planner: the chains that are worth trying for a goal, cheap ones first."""

from collections.abc import Iterator

from optcore.mixes import MIXES
from optcore.recipe import Recipe
from optcore.schemes import GGML_FORMATS
from optcore.search.objective import Chain
from optcore.techniques import AutoQuantize, Distill, Prune, Ptq, Qad

_EIGHT_BITS = ("fp8_dynamic", "int8", "int8_w8a16", "mxfp8", "q8_0")
_FOUR_BITS = ("nvfp4", "int4", "int4_g32", "int4_fp8", "mxfp4", "q4_k_m", "iq4_xs", "q6_k", "q5_k_m")
_FEWER_BITS = ("int3_g32", "int2_g16", "q3_k_m", "q2_k_m")
_SMALL_bits = 4.0
"""A bound below this leaves no room for four bits and their scales."""
STEPS = 300
"""Of the planner's own training, behind a quantizing entry or a pruning one; a recipe's own candidates say theirs."""
_WIDTH = 0.125
"""Share of the channels that its pruning takes: an eighth costs little where a fifth begins to."""


def menu(recipe: Recipe) -> Iterator[Chain]:
    """Chains for a recipe's target and goal; not all of them will fit it. One pass over the text comes before a search
    among formats, and that before training."""
    held = _held(recipe)
    eight, four = ([name for name in names if name in held] for names in (_EIGHT_BITS, _FOUR_BITS))
    narrow = four[:2]
    yield from ((Ptq(scheme=name),) for name in (*eight[:3], *four))
    yield from ((Ptq(scheme=name, kv_cache="fp8"),) for name in (eight[:1] + narrow[:1]) if _wants_speed(recipe))
    yield from ((AutoQuantize(effective_bits=bits),) for bits in (6.0, 5.0) if {"nvfp4", "fp8_dynamic"} <= held)
    yield from ((Ptq(scheme=name),) for name in _FEWER_BITS if name in held and _is_tight(recipe))
    if recipe.target.takes_unquantized:
        yield from (_pruned(share) for share in (_WIDTH, 2 * _WIDTH))
    yield from ((*_pruned(_WIDTH), Ptq(scheme=name)) for name in (eight[:1] + narrow[:1]))
    yield from ((Ptq(scheme=name), Qad(steps=STEPS)) for name in narrow)


def _held(recipe: Recipe) -> frozenset[str]:
    """Formats that make a result of this target smaller: in a dense one all weights have their full width, and of those
    that GGUF holds its own are what its engine is fast with."""
    held = recipe.target.schemes
    if recipe.target.format in ("dense", "compact"):
        return frozenset()
    return (held & GGML_FORMATS) | MIXES.keys() if held & GGML_FORMATS else held


def _pruned(share: float) -> Chain:
    return Prune(width=share), Distill(steps=STEPS)


def trains(chain: Chain) -> bool:
    """Whether a chain of the menu takes much longer than a pass over the text."""
    return any(isinstance(entry, Distill | Qad) for entry in chain)


def _wants_speed(recipe: Recipe) -> bool:
    return recipe.objective is not None and recipe.objective.is_about_speed


def _is_tight(recipe: Recipe) -> bool:
    asked = recipe.objective
    bits = asked.max_bits_per_weight if asked else None
    return asked is not None and (asked.max_bytes is not None or (bits is not None and bits < 2 * _SMALL_bits))
