"""Prompt lookup against a search through the whole text."""

import pytest
import torch

from optcore.speculative.ngram import NgramDrafter
from optcore.speculative.sampling import GREEDY
from optcore.speculative.target import Features

NOTHING = Features(torch.empty(1, 0, 1), ())


def _searched(text: list[int], count: int, longest: int) -> list[int]:
    """What follows the last earlier place of the longest suffix, over and over where that runs into the end."""
    for length in range(min(longest, len(text)), 0, -1):
        for place in range(len(text) - 1, length - 1, -1):
            if text[place - length : place] == text[-length:]:
                found = list(text)
                for _ in range(count):
                    found.append(found[place + len(found) - len(text)])
                return found[len(text) :]
    return []


@pytest.mark.parametrize(("letters", "longest"), [(2, 4), (4, 3), (40, 4), (5, 1)])
def test_it_finds_what_a_search_finds(letters: int, longest: int) -> None:
    """Two rows, read in pieces of different lengths."""
    random = torch.Generator().manual_seed(letters)
    text_BT = torch.randint(0, letters, (2, 90), generator=random)
    drafter = NgramDrafter(2, longest)
    at, empty = [0, 0], 0
    while max(at) < 80:
        chosen_B = torch.tensor([text_BT[row, at[row]] for row in range(2)])
        proposal = drafter.propose(chosen_B, 6, GREEDY, None)
        assert proposal.valid_BK is not None
        for row in range(2):
            wanted = _searched(text_BT[row, : at[row] + 1].tolist(), 6, longest)
            assert proposal.tokens_BK[row, proposal.valid_BK[row]].tolist() == wanted
            empty += not wanted
        read_B = torch.randint(1, 4, (2, 1), generator=random)
        valid_BT = torch.arange(3) < read_B
        places_BT = torch.tensor(at)[:, None] + torch.arange(3)
        drafter.read(text_BT.gather(1, places_BT), valid_BT, NOTHING)
        at = [place + int(read) for place, read in zip(at, read_B[:, 0], strict=True)]
    assert empty >= 2  # the first token of a text is always new


def test_a_repetition_is_continued() -> None:
    drafter = NgramDrafter(1)
    drafter.read(torch.tensor([[5, 1, 2, 3, 1, 2]]), torch.ones(1, 6, dtype=torch.bool), NOTHING)
    assert drafter.propose(torch.tensor([3]), 7, GREEDY, None).tokens_BK.tolist() == [[1, 2, 3, 1, 2, 3, 1]]
    assert drafter.propose(torch.tensor([9]), 2, GREEDY, None).valid_BK.tolist() == [[False, False]]
