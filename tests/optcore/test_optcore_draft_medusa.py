"""Medusa's heads, and trees of their candidates."""

from collections.abc import Iterator
from itertools import combinations

import pytest
import torch
from fixtures.drafting import COUNT, made, random_text, stirred
from fixtures.tiny_models import MakeModel

from optcore.drafts.medusa import Medusa
from optcore.drafts.tree import Path, likeliest_tree, parents_of, product_tree, rank_accuracies
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.speculative.sampling import GREEDY, Sampling
from optcore.speculative.target import Target


@pytest.mark.parametrize("family", ["Qwen2", "Gemma2", "Cohere", "Phi"])  # tied, capped, scaled, with a bias
def test_every_head_begins_as_the_targets_own(family: str, tiny_model: MakeModel) -> None:
    target = Target(tiny_model(family))
    known = DraftVocabulary(torch.arange(1, target.vocabulary, 2), target.vocabulary)
    tokens_BT = torch.arange(12)[None]
    features = target.look({"input_ids": tokens_BT})
    wanted = target.logits(features.hidden_BTH)[..., known.ids_D]
    for own_heads in (True, False):
        draft = Medusa(target, known, COUNT, own_heads=own_heads)
        for k, hidden in enumerate(draft.answers(tokens_BT, tokens_BT, features, COUNT)):
            torch.testing.assert_close(draft.logits(hidden, k), wanted, rtol=1e-5, atol=1e-5)


def test_parameters_are_named_as_vllm_loads_them(tiny_model: MakeModel) -> None:
    target = Target(tiny_model("Llama"))
    whole = DraftVocabulary.whole(target.vocabulary)
    own = Medusa(target, whole, 2, depth=1)
    assert {name: tuple(tensor.shape) for name, tensor in own.state_dict().items()} == {
        "blocks.0.layers.0.weight": (128, 128),
        "blocks.0.layers.0.bias": (128,),
        "blocks.1.layers.0.weight": (128, 128),
        "blocks.1.layers.0.bias": (128,),
        "lm_heads.0.weight": (2048, 128),
        "lm_heads.1.weight": (2048, 128),
    }
    assert not any("lm_head" in name for name in Medusa(target, whole, 2, own_heads=False).state_dict())


def test_more_answers_than_heads_are_refused(tiny_model: MakeModel) -> None:
    target = Target(tiny_model("Llama"))
    text = random_text(target, 1, 4)
    with pytest.raises(ValueError, match="3 heads give no 4 answers"):
        text.answers(made("medusa", target), 4)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0)])
def test_a_tree_holds_each_heads_likeliest_tokens(sampling: Sampling, tiny_model: MakeModel) -> None:
    target = Target(tiny_model("Llama"))
    known = DraftVocabulary(torch.arange(1, target.vocabulary, 2), target.vocabulary)
    draft, text = stirred(made("medusa", target, known)), random_text(target, 2, 5)
    assert isinstance(draft, Medusa)
    draft.tree = product_tree((2, 3, 1))
    drafter = draft.drafter(2)
    drafter.read(text.tokens_BT, torch.ones(2, 5, dtype=torch.bool), text.features)
    found = drafter.propose(torch.tensor([1, 2]), 8, sampling, torch.Generator())
    assert found.parents_K == (-1, -1, 0, 0, 0, 1, 1, 1)
    assert found.probabilities_BKV is None
    best = [known.ids_D[draft.logits(answer[:, -1], k).topk(3).indices] for k, answer in enumerate(text.answers(draft))]
    wanted = [best[0][:, 0], best[0][:, 1], *(best[1][:, rank] for rank in (0, 1, 2, 0, 1, 2))]
    assert torch.equal(found.tokens_BK, torch.stack(wanted, 1))


def _value(tree: tuple[Path, ...], accuracies: list[list[float]]) -> float:
    """Expected accepted tokens."""
    products = (torch.tensor([accuracies[k][rank] for k, rank in enumerate(path)]).double().prod() for path in tree)
    return float(sum(products))


def _all_trees(accuracies: list[list[float]], nodes: int) -> Iterator[tuple[Path, ...]]:
    paths = product_tree([len(ranks) for ranks in accuracies])
    for chosen in combinations(paths, nodes):
        if all(path[:-1] == () or path[:-1] in chosen for path in chosen):
            yield chosen


def test_the_likeliest_tree_is_the_best_of_all() -> None:
    """Of every tree that there is, for each number of nodes."""
    accuracies = [[0.6, 0.2, 0.1], [0.5, 0.3], [0.4, 0.35]]
    whole = likeliest_tree(accuracies, 6)
    for nodes in range(1, 7):
        tree = likeliest_tree(accuracies, nodes)
        assert tree == whole[:nodes]
        parents_of(tree)
        best = max(_value(other, accuracies) for other in _all_trees(accuracies, nodes))
        assert _value(tree, accuracies) == pytest.approx(best, abs=1e-12)


def test_trees_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="4 nodes are all there are, not 5"):
        likeliest_tree([[0.5], [0.5], [0.5], [0.5]], 5)
    with pytest.raises(ValueError, match="measure on more tokens"):
        likeliest_tree([[0.2, 0.3]], 1)
    for wrong in [((0, 0),), ((1,), (0,)), ((0,), (0,))]:
        with pytest.raises(ValueError, match="does not stand once"):
            parents_of(wrong)


def test_accuracies_are_counted_by_rank() -> None:
    logits_ND = torch.tensor([[3.0, 2, 1, 0], [0, 1, 2, 3], [3, 2, 1, 0], [3, 2, 1, 0]])
    assert rank_accuracies(logits_ND, torch.tensor([0, 3, 1, -1]), 3) == [0.5, 0.25, 0.0]
