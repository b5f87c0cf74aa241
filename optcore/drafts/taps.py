"""Which of a target's layers a draft reads.

Engines number what they tap by the layer that it goes into: auxiliary hidden state n of vLLM and SGLang is the input of
layer n, and so the output of layer n - 1, which is what our taps are numbers of. Their defaults, layers 2, L/2 and
L - 3, are our 1, L/2 - 1 and L - 4, as SpecForge hooks them.
"""


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
