"""Which of a target's layers a draft reads.

Engines number what they tap by the layer that it goes into: auxiliary hidden state n of vLLM and SGLang is the input of
layer n, and so the output of layer n - 1, which is what our taps are numbers of. Their defaults, layers 2, L/2 and
L - 3, are our 1, L/2 - 1 and L - 4, as SpecForge hooks them.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optcore.techniques.draft import Draft

_BLOCK_taps = 5


def taps_of(technique: "Draft", layers: int) -> tuple[int, ...]:
    """The layers that a draft reads of a target with so many."""
    if technique.taps is not None:
        return technique.taps
    match technique.method:
        case "eagle3":
            return default_taps(layers)
        case "block":
            return spread_taps(layers, _BLOCK_taps)
    return ()


def default_taps(layers: int) -> tuple[int, ...]:
    """A low, a middle and a high layer of so many; fewer where there are fewer.

    Of fewer than seven layers the usual ones would not be three, in order: other ones are taken, but not the last one,
    which the head's features tell enough of.
    """
    if layers >= 7:
        return 1, layers // 2 - 1, layers - 4
    if layers >= 4:
        return layers // 2 - 2, layers // 2 - 1, layers - 2
    return tuple(range(layers))


def spread_taps(layers: int, count: int) -> tuple[int, ...]:
    """At most so many layers of a target, evenly from the second to the third-last: what the authors tap."""
    if count == 1:
        return (layers // 2,)
    first, last = min(1, layers - 1), max(layers - 3, min(1, layers - 1))
    return tuple(dict.fromkeys(round(first + place * (last - first) / (count - 1)) for place in range(count)))
