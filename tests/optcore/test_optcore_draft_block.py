"""Blocks: where they begin, and what is tapped."""

import pytest
import torch
from fixtures.drafting import COUNT, made, random_text, stirred
from fixtures.tiny_models import MakeModel

from optcore.drafts.anchors import drawn_anchors
from optcore.drafts.block import Block
from optcore.drafts.taps import spread_taps
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.speculative.sampling import GREEDY
from optcore.speculative.target import Target

T = 12


def test_chosen_places_answer_as_all_places_do(tiny_model: MakeModel) -> None:
    """Beside other blocks or alone, in any order: no block sees another."""
    target = Target(tiny_model("Llama"), taps=(0, 1))
    for method in ("block", "mtp"):
        draft, text = stirred(made(method, target)), random_text(target, 2, T)
        everywhere = text.answers(draft)
        anchors_BA = torch.tensor([[7, 0, 3], [2, 9, 9]])
        asked = (text.tokens_BT, text.positions_BT, text.features, COUNT)
        for there, answer in zip(draft.answers_at(anchors_BA, *asked), everywhere, strict=True):
            wanted = answer[torch.arange(2)[:, None], anchors_BA]
            torch.testing.assert_close(there, wanted, rtol=0, atol=1e-12)


def test_fewer_answers_are_the_first_of_a_whole_block(tiny_model: MakeModel) -> None:
    """Since a block is trained as a whole, a shorter one would be another task."""
    target = Target(tiny_model("Llama"), taps=(0, 1))
    draft, text = stirred(made("block", target)), random_text(target, 1, T)
    assert torch.equal(text.answers(draft, 1)[0], text.answers(draft)[0])
    drafter = draft.drafter(1)
    drafter.read(text.tokens_BT, torch.ones(1, T, dtype=torch.bool), text.features)
    one, most = (drafter.propose(torch.tensor([5]), count, GREEDY, None).tokens_BK for count in (1, COUNT + 4))
    assert most.shape == (1, COUNT)
    assert torch.equal(one, most[:, :1])
    with pytest.raises(ValueError, match="gives no 4 answers"):
        text.answers(draft, COUNT + 1)


def test_windows_longer_than_what_is_answered_at_once(tiny_model: MakeModel) -> None:
    target = Target(tiny_model("Llama"), taps=(1,))
    draft, text = made("block", target).double(), random_text(target, 1, 150)
    assert [answer.shape for answer in text.answers(draft)] == [(1, 150, target.width)] * COUNT


def test_a_mask_is_learned_unless_the_target_has_a_token_for_it(tiny_model: MakeModel) -> None:
    target = Target(tiny_model("Llama"), taps=(1,))
    learned, given = (Block(target, DraftVocabulary.whole(2048), COUNT, mask_token=token) for token in (None, 7))
    assert "mask_H" in dict(learned.named_parameters())
    assert "mask_H" not in given.state_dict()
    assert torch.equal(given.mask_H, target.embeddings.weight[7])


def test_anchors_are_drawn_where_they_may_be() -> None:
    may_BT = torch.zeros(2, 40, dtype=torch.bool)
    may_BT[0, 5:15], may_BT[1, 20:23] = True, True
    generator = torch.Generator().manual_seed(0)
    drawn = [drawn_anchors(may_BT, 4, generator) for _ in range(50)]
    for anchors_BA in drawn:
        assert (anchors_BA[:, 1:] > anchors_BA[:, :-1]).all()
        assert may_BT[0, anchors_BA[0]].all()
        assert set(anchors_BA[1].tolist()) > {20, 21, 22}  # the fourth had to be another
    assert set(torch.cat([anchors_BA[0] for anchors_BA in drawn]).tolist()) == set(range(5, 15))
    assert drawn_anchors(may_BT, 99, generator).shape == (2, 40)


def test_taps_are_spread_as_the_authors_do() -> None:
    """As SpecForge's configurations have it for Qwen2.5-0.5B, Qwen3-8B, Qwen3.5-35B-A3B and Qwen3.6-27B."""
    assert spread_taps(24, 5) == (1, 6, 11, 16, 21)
    assert spread_taps(36, 5) == (1, 9, 17, 25, 33)
    assert spread_taps(40, 5) == (1, 10, 19, 28, 37)
    assert spread_taps(64, 5) == (1, 16, 31, 46, 61)
    assert spread_taps(36, 1) == (18,)
    assert spread_taps(6, 5) == (1, 2, 3)
    assert spread_taps(2, 5) == (1,)
    assert spread_taps(1, 5) == (0,)
