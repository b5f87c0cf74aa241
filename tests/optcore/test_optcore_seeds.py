"""Seeds of several parts."""

import torch

from optcore.seeds import seed_of


def test_each_part_decides_what_is_drawn() -> None:
    drawn = {
        tuple(torch.rand(4, generator=torch.Generator().manual_seed(seed_of(*parts))).tolist())
        for parts in ((1, 2), (2, 1), (1, 3), (1 << 32, 2), (1, 2, 0), (1, "2"))
    }
    assert len(drawn) == 6


def test_it_is_the_same_on_every_machine() -> None:
    assert seed_of(1, "layer") == seed_of(1, "layer") < 2**32
