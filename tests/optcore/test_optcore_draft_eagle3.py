"""The EAGLE-3 draft: its teacher-forced answers, and its drafting, against a rollout written out place by place."""

from itertools import product
from pathlib import Path

import pytest
import torch
from fixtures.tiny_models import MakeModel
from transformers import AutoConfig

from optcore.drafts.eagle3 import Eagle3
from optcore.drafts.eagle3_drafter import Eagle3Drafter, TreeShape
from optcore.drafts.sizes import Sizes
from optcore.drafts.taps import default_taps
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.speculative.sampling import GREEDY, Sampling, probabilities
from optcore.speculative.target import Features

torch.set_num_threads(1)
H, V = 24, 17
SIZES = Sizes(
    hidden_size=H, num_attention_heads=4, num_key_value_heads=2, head_dim=6, intermediate_size=20, rope_theta=100.0
)
IDS = torch.tensor([0, 2, 3, 5, 7, 8, 11, 12, 16])


def draft_of(*, seed: int = 0, normed: bool = False) -> Eagle3:
    """With random weights, norms too, in float64."""
    torch.manual_seed(seed)
    sizes = SIZES.model_copy(update={"norm_before_residual": normed})
    draft = Eagle3(sizes, (0, 1, 2), DraftVocabulary(IDS, V), torch.randn(V, H)).double()
    for parameter in draft.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            torch.nn.init.normal_(parameter, std=0.3)
    return draft


def text(rows: int, length: int, *, seed: int = 1) -> tuple[torch.Tensor, Features]:
    """Random tokens and what a target might have computed of them."""
    torch.manual_seed(seed)
    tapped = tuple(torch.randn(rows, length, H, dtype=torch.float64) for _ in range(3))
    return torch.randint(0, V, (rows, length)), Features(tapped[-1], tapped)


class Rollout:
    """One sequence, one place after the other, with a list of all keys and values: no masks, no batches."""

    def __init__(self, draft: Eagle3) -> None:
        self.draft = draft
        self.weights = dict(draft.named_parameters())
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def norm(self, name: str, x_H: torch.Tensor) -> torch.Tensor:
        return x_H * (x_H.square().mean() + SIZES.rms_norm_eps).rsqrt() * self.weights[f"{name}.weight"]

    def times(self, name: str, x_H: torch.Tensor) -> torch.Tensor:
        return self.weights[f"{name}.weight"] @ x_H

    def heads(self, name: str, x_H: torch.Tensor, position: int | None) -> torch.Tensor:
        """[heads, E]; with a position turned by it, as complex numbers."""
        x_NE = self.times(f"midlayer.self_attn.{name}", x_H).view(-1, SIZES.head_dim)
        if position is None:
            return x_NE
        half = SIZES.head_dim // 2
        angles = position * torch.tensor([SIZES.rope_theta ** (-i / half) for i in range(half)], dtype=torch.float64)
        turned = torch.complex(x_NE[:, :half], x_NE[:, half:]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((turned.real, turned.imag), -1)

    def step(self, token: int, hidden_H: torch.Tensor, position: int) -> torch.Tensor:
        """The layer's output at a place, which stays in the cache."""
        normed = self.norm("midlayer.hidden_norm", hidden_H)
        embedded = self.norm("midlayer.input_layernorm", self.draft.embeddings_VH[token])
        inputs = torch.cat((embedded, normed))
        queries = self.heads("q_proj", inputs, position)
        self.keys.append(self.heads("k_proj", inputs, position))
        self.values.append(self.heads("v_proj", inputs, None))
        found = []
        for head, query in enumerate(queries):
            group = head * SIZES.num_key_value_heads // SIZES.num_attention_heads
            scores = torch.stack([query @ keys[group] / SIZES.head_dim**0.5 for keys in self.keys])
            found.append(sum(w * values[group] for w, values in zip(scores.softmax(0), self.values, strict=True)))
        residual = normed if self.draft.sizes.norm_before_residual else hidden_H
        hidden = residual + self.times("midlayer.self_attn.o_proj", torch.cat(found))
        x = self.norm("midlayer.post_attention_layernorm", hidden)
        gate, up = self.times("midlayer.mlp.gate_proj", x), self.times("midlayer.mlp.up_proj", x)
        return hidden + self.times("midlayer.mlp.down_proj", torch.nn.functional.silu(gate) * up)

    def fused(self, features: Features, row: int, place: int) -> torch.Tensor:
        return self.times("fc", torch.cat([one[row, place] for one in features.tapped]))

    def logits(self, hidden_H: torch.Tensor) -> torch.Tensor:
        return self.times("lm_head", self.norm("norm", hidden_H))

    def answers(
        self, tokens_T: list[int], features: Features, row: int, start: int, place: int, count: int
    ) -> torch.Tensor:
        """[count, D] at a place of a document that begins at `start`."""
        for earlier in range(start, place):
            self.step(tokens_T[earlier + 1], self.fused(features, row, earlier), earlier - start)
        hidden, found = self.fused(features, row, place), []
        for k in range(count):
            hidden = self.step(tokens_T[place + 1 + k], hidden, place - start + k)
            found.append(self.logits(hidden))
        return torch.stack(found)


@pytest.mark.parametrize("normed", [False, True])
def test_answers_are_those_of_a_rollout_from_every_place(normed: bool) -> None:
    draft, count = draft_of(normed=normed), 4
    tokens_BT, features = text(2, 12)
    begins = (0, 5)
    positions_BT = torch.tensor([[*range(5), *range(7)]] * 2)
    with torch.no_grad():
        states = list(draft.answers(tokens_BT, positions_BT, features, count))
        found = torch.stack([draft.logits(state, k) for k, state in enumerate(states)], 2)
        for row, place in product(range(2), range(12 - count)):
            start = begins[place >= begins[1]]
            wanted = Rollout(draft).answers(tokens_BT[row].tolist(), features, row, start, place, count)
            assert (found[row, place] - wanted).abs().max() < 1e-9, (row, place)


def test_what_is_recomputed_has_the_same_gradients() -> None:
    draft = draft_of()
    tokens_BT, features = text(2, 9)
    gradients = []
    for draft.recomputes in (False, True):
        total = sum(state.square().sum() for state in draft.answers(tokens_BT, torch.arange(9)[None], features, 3))
        gradients.append(torch.autograd.grad(total, list(draft.midlayer.parameters())))
    for kept, recomputed in zip(*gradients, strict=True):
        assert torch.equal(kept, recomputed)


def teacher_forced(draft: Eagle3, tokens: list[int], features: Features, row: int, place: int) -> torch.Tensor:
    """Logits [count, D] of the answers at a place, the tokens behind it given."""
    count = len(tokens) - place - 1
    padded = [torch.cat((one[row, : place + 1], one.new_zeros(count, H)))[None] for one in features.tapped]
    given = Features(padded[-1], tuple(padded))
    states = draft.answers(torch.tensor([tokens]), torch.arange(len(tokens))[None], given, count)
    return torch.stack([draft.logits(state, k)[0, place] for k, state in enumerate(states)])


def read_in_parts(draft: Eagle3, tokens_BT: torch.Tensor, features: Features, lengths: list[int]) -> Eagle3Drafter:
    """A drafter that has read each row's first tokens: some padded on the left, then the rest padded on the right."""
    drafter, first = draft.drafter(len(lengths)), 4
    valid = torch.tensor([[place >= first - min(first, length - 1) for place in range(first)] for length in lengths])
    source = torch.tensor([[max(0, place - first + min(first, n - 1)) for place in range(first)] for n in lengths])
    drafter.read(*_gathered(tokens_BT, valid, features, source))
    rest = torch.tensor([[min(first, n - 1) + place for place in range(max(lengths))] for n in lengths])
    valid = rest < torch.tensor(lengths)[:, None]
    drafter.read(*_gathered(tokens_BT, valid, features, rest.clamp(max=tokens_BT.shape[1] - 1)))
    return drafter


def _gathered(
    tokens_BT: torch.Tensor, valid_BT: torch.Tensor, features: Features, source_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, Features]:
    """What `read` is given: the tokens of some places, and which of them are there."""
    tapped = tuple(one.gather(1, source_BT[..., None].expand(-1, -1, H)) for one in features.tapped)
    return tokens_BT.gather(1, source_BT), valid_BT, Features(tapped[-1], tapped)


def test_a_greedy_chain_is_what_the_answers_find_likeliest() -> None:
    draft, lengths, count = draft_of(), [9, 2, 5], 4
    tokens_BT, features = text(3, 10)
    drafter = read_in_parts(draft, tokens_BT, features, lengths)
    chosen_B = torch.tensor([3, 16, 1])
    found = drafter.propose(chosen_B, count, GREEDY, None)
    assert found.probabilities_BKV is None
    assert found.parents_K is None
    for row, length in enumerate(lengths):
        guesses = found.tokens_BK[row].tolist()
        tokens = [*tokens_BT[row, :length].tolist(), int(chosen_B[row]), *guesses]
        wanted = teacher_forced(draft, tokens[:-1], features, row, length - 1)
        assert IDS[wanted.argmax(-1)].tolist() == guesses
    assert torch.equal(drafter.propose(chosen_B, count, GREEDY, None).tokens_BK, found.tokens_BK)


def test_a_sampled_chain_says_what_it_was_drawn_from() -> None:
    draft, lengths, sampling = draft_of(), [3, 7], Sampling(temperature=0.7, top_k=5)
    tokens_BT, features = text(2, 8)
    drafter = read_in_parts(draft, tokens_BT, features, lengths)
    chosen_B = torch.tensor([4, 9])
    found = drafter.propose(chosen_B, 3, sampling, torch.Generator().manual_seed(5))
    assert found.probabilities_BKV is not None
    for row, length in enumerate(lengths):
        tokens = [*tokens_BT[row, :length].tolist(), int(chosen_B[row]), *found.tokens_BK[row].tolist()]
        logits = teacher_forced(draft, tokens[:-1], features, row, length - 1)
        wanted = probabilities(draft.vocabulary.spread(logits, float("-inf")), sampling)
        assert (found.probabilities_BKV[row] - wanted).abs().max() < 1e-12
        assert found.probabilities_BKV[row].gather(-1, found.tokens_BK[row][:, None]).min() > 0
    assert not found.probabilities_BKV[..., ~draft.vocabulary.t2d_V].any()


def test_a_tree_has_the_likeliest_paths() -> None:
    """Of all paths of three tokens and their beginnings, each scored by the rollout."""
    draft, length, count = draft_of(), 4, 20
    tokens_BT, features = text(1, 5)
    drafter = draft.drafter(1, TreeShape(depth=3, branches=100))
    tapped = tuple(one[:, :length] for one in features.tapped)
    drafter.read(tokens_BT[:, :length], torch.ones(1, length, dtype=torch.bool), Features(tapped[-1], tapped))
    found = drafter.propose(torch.tensor([6]), count, GREEDY, None)
    assert found.parents_K is not None
    assert len(found.parents_K) == count
    with torch.no_grad():
        scores = _scored(draft, [*tokens_BT[0, :length].tolist(), 6], features, length - 1, 3)
    best = sorted(scores, key=lambda path: -scores[path])[:count]
    assert {_path(found.tokens_BK[0].tolist(), found.parents_K, node) for node in range(count)} == set(best)
    assert all(parent < node for node, parent in enumerate(found.parents_K))
    siblings = [scores[_path(found.tokens_BK[0].tolist(), found.parents_K, node)] for node in range(count)]
    first = [score for score, parent in zip(siblings, found.parents_K, strict=True) if parent == -1]
    assert first == sorted(first, reverse=True)


def test_a_narrow_tree_of_one_branch_is_a_chain() -> None:
    draft = draft_of()
    tokens_BT, features = text(1, 4)
    tree, chain = draft.drafter(1, TreeShape(depth=4, branches=1)), draft.drafter(1)
    for drafter in (tree, chain):
        drafter.read(tokens_BT, torch.ones(1, 4, dtype=torch.bool), features)
    found = tree.propose(torch.tensor([6]), 4, GREEDY, None)
    assert found.parents_K == (-1, 0, 1, 2)
    assert torch.equal(found.tokens_BK, chain.propose(torch.tensor([6]), 4, GREEDY, None).tokens_BK)
    with pytest.raises(ValueError, match="one sequence, not for 2"):
        draft.drafter(2, TreeShape())


def _path(tokens: list[int], parents: tuple[int, ...], node: int) -> tuple[int, ...]:
    path: tuple[int, ...] = ()
    while node >= 0:
        path, node = (tokens[node], *path), parents[node]
    return path


def _scored(
    draft: Eagle3, tokens: list[int], features: Features, place: int, depth: int
) -> dict[tuple[int, ...], float]:
    """Log-probability of every path of at most `depth` tokens."""
    scores: dict[tuple[int, ...], float] = {(): 0.0}
    for path in [path for size in range(depth) for path in product(IDS.tolist(), repeat=size)]:
        logits = teacher_forced(draft, [*tokens, *path], features, 0, place)[-1].log_softmax(-1)
        scores |= {(*path, token): scores[path] + float(one) for token, one in zip(IDS.tolist(), logits, strict=True)}
    del scores[()]
    return scores


def test_parameters_are_named_as_engines_name_them() -> None:
    linears = [f"midlayer.self_attn.{name}_proj" for name in "qkvo"]
    linears += [f"midlayer.mlp.{name}_proj" for name in ("gate", "up", "down")]
    norms = [f"midlayer.{name}" for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm")]
    wanted = {f"{name}.weight" for name in (*linears, *norms, "fc", "norm", "lm_head")}
    assert set(draft_of().state_dict()) == wanted


@pytest.mark.parametrize(
    ("layers", "taps"),
    [(1, (0,)), (3, (0, 1, 2)), (4, (0, 1, 2)), (5, (0, 1, 3)), (6, (1, 2, 4)), (7, (1, 2, 3)), (32, (1, 15, 28))],
)
def test_default_taps_are_different_layers(layers: int, taps: tuple[int, ...]) -> None:
    assert default_taps(layers) == taps


def test_sizes_are_the_targets_own(tiny_model: MakeModel, stdlib_model: Path) -> None:
    sizes = Sizes.of(AutoConfig.from_pretrained(stdlib_model))
    assert (sizes.num_attention_heads, sizes.num_key_value_heads, sizes.head_dim) == (4, 2, 64)
    assert (sizes.intermediate_size, sizes.rope_theta, sizes.rms_norm_eps) == (768, 10000.0, 1e-6)
    gemma = AutoConfig.from_pretrained(tiny_model("Gemma3Text"))  # a base for each kind of layer
    assert Sizes.of(gemma).rope_theta == gemma.rope_parameters["full_attention"]["rope_theta"]


def test_top_p_keeps_the_likeliest_tokens_that_hold_the_mass() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert torch.allclose(
        probabilities(logits, Sampling(temperature=1, top_p=0.7)), torch.tensor([[0.625, 0.375, 0, 0]])
    )
    assert torch.allclose(probabilities(logits, Sampling(temperature=1, top_p=0.01)), torch.tensor([[1.0, 0, 0, 0]]))
    halved = probabilities(logits, Sampling(temperature=0.5, top_k=2))
    assert torch.allclose(halved, torch.tensor([[0.25 / 0.34, 0.09 / 0.34, 0, 0]]))
    assert probabilities(logits, GREEDY).tolist() == [[1, 0, 0, 0]]
