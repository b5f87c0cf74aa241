"""What `medusa`, `mtp` and `block` have in common: what an answer may depend on, and that decoding gives the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fixtures.drafting import COUNT, METHODS, Lesson, Text, made, python_windows, random_text, stirred
from fixtures.tiny_models import MakeModel
from torch.nn.functional import pad

from optcore.drafts.taps import spread_taps
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.speculative.sampling import GREEDY, Sampling
from optcore.speculative.target import Features, Target

MakeTarget = Callable[[str], Target]
T, AT = 9, 4
BOTH = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def target_of(tiny_model: MakeModel) -> MakeTarget:
    """Tiny targets with two layers, both tapped."""
    made: dict[str, Target] = {}
    return lambda family: made.setdefault(family, Target(tiny_model(family), taps=(0, 1)))


def _changed(text: Text, *, token: int | None = None, feature: int | None = None) -> Text:
    """One token, or all that the target computed at one, is another."""
    tokens_BT, hidden, tapped = text.tokens_BT.clone(), text.features.hidden_BTH.clone(), text.features.tapped
    tapped = tuple(part.clone() for part in tapped)
    if token is not None:
        tokens_BT[:, token] += 1
    if feature is not None:
        for part in (hidden, *tapped):
            part[:, feature] += 1
    return text._replace(tokens_BT=tokens_BT, features=Features(hidden, tapped))


@BOTH
def test_an_answer_depends_on_nothing_later_than_it_may(method: str, target_of: MakeTarget) -> None:
    """At t: features up to t, and the token t+1; of an autoregressive draft each further answer, one token more."""
    target = target_of("Llama")
    draft, text = stirred(made(method, target)), random_text(target, 1, T)
    before = [answer[:, AT] for answer in text.answers(draft)]
    for k in range(COUNT):
        last = AT + 1 + k if method == "mtp" else AT + 1
        for place in range(T):
            by_token = not torch.equal(_changed(text, token=place).answers(draft)[k][:, AT], before[k])
            by_feature = not torch.equal(_changed(text, feature=place).answers(draft)[k][:, AT], before[k])
            if place > last or method == "medusa":
                assert not by_token, (k, place)
            if place > AT or (method == "medusa" and place < AT):
                assert not by_feature, (k, place)
            if place == last and method != "medusa":
                assert by_token, (k, place)
            if place == AT:
                assert by_feature, (k, place)


@BOTH
def test_documents_of_a_window_answer_as_if_alone(method: str, target_of: MakeTarget) -> None:
    target = target_of("Llama")
    draft, text = stirred(made(method, target)), random_text(target, 2, T)
    packed = text._replace(positions_BT=torch.cat((torch.arange(AT), torch.arange(T - AT))).expand(2, -1))
    for k, answer in enumerate(packed.answers(draft)):
        for columns in (slice(0, AT), slice(AT, T)):
            own_text = packed.cut(slice(None), columns)
            within = own_text.tokens_BT.shape[1] - 1 - k  # behind it, tokens of the other document are read
            alone = own_text.answers(draft)[k]
            torch.testing.assert_close(answer[:, columns][:, :within], alone[:, :within], rtol=0, atol=1e-9)


def _read_in_pieces(drafter: Any, text: Text, lengths: list[int]) -> None:
    """Rows of their own lengths, in three reads with padding before, between and behind their tokens."""
    starts = [0] * len(lengths)
    for piece in (3, 0, 2, max(lengths)):
        width = piece + 2
        valid_BT = torch.zeros(len(lengths), width, dtype=torch.bool)
        columns_BT = torch.zeros(len(lengths), width, dtype=torch.int64)
        for row, length in enumerate(lengths):
            new = list(range(starts[row], min(starts[row] + piece, length)))
            places = sorted({(row + 2 * i) % width for i in range(width)})[: len(new)] if row else range(len(new))
            for place, column in zip(places, new, strict=True):
                valid_BT[row, place], columns_BT[row, place] = True, column
            starts[row] += len(new)
        rows = torch.arange(len(lengths))[:, None]
        hidden, tapped = text.features
        features = Features(hidden[rows, columns_BT], tuple(part[rows, columns_BT] for part in tapped))
        drafter.read(text.tokens_BT[rows, columns_BT], valid_BT, features)
    assert starts == lengths


@BOTH
def test_decoding_gives_what_training_saw(method: str, target_of: MakeTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows at different places propose, and given their proposals as text, the window's answers there are the same."""
    target = target_of("Llama")
    draft, text = stirred(made(method, target)), random_text(target, 3, T + COUNT)
    lengths = [2, T - 2, AT]
    drafter = draft.drafter(3)
    _read_in_pieces(drafter, text, lengths)
    rows = torch.arange(3)
    chosen_B = text.tokens_BT[rows, torch.tensor(lengths)]
    seen: list[torch.Tensor] = []
    logits = draft.logits
    with monkeypatch.context() as patch:
        patch.setattr(draft, "logits", lambda hidden, k=0: (seen.append(hidden), logits(hidden, k))[1])
        first = drafter.propose(chosen_B, COUNT, GREEDY, None)
    again = drafter.propose(chosen_B, COUNT, GREEDY, None)
    assert torch.equal(first.tokens_BK, again.tokens_BK)
    for row, length in enumerate(lengths):
        text.tokens_BT[row, length + 1 : length + 1 + COUNT] = first.tokens_BK[row]
    for k, answer in enumerate(text.answers(draft)):
        there = answer[rows, torch.tensor(lengths) - 1]
        torch.testing.assert_close(seen[k].reshape(there.shape), there, rtol=0, atol=1e-9)
        assert torch.equal(draft.logits(there, k).argmax(-1), first.tokens_BK[:, k])


@BOTH
def test_drawn_tokens_come_with_what_they_were_drawn_from(method: str, target_of: MakeTarget) -> None:
    target = target_of("Qwen2")
    known = DraftVocabulary(torch.arange(7, target.vocabulary, 3), target.vocabulary)
    draft, text = stirred(made(method, target, known)), random_text(target, 4, T)
    drafter = draft.drafter(4)
    drafter.read(text.tokens_BT, torch.ones(4, T, dtype=torch.bool), text.features)
    chosen_B = torch.full((4,), 9)
    drawn = drafter.propose(chosen_B, COUNT, Sampling(temperature=0.7), torch.Generator().manual_seed(1))
    likeliest = drafter.propose(chosen_B, COUNT, GREEDY, None)
    assert torch.isin(likeliest.tokens_BK, known.ids_D).all()
    assert likeliest.probabilities_BKV is None
    p = drawn.probabilities_BKV
    assert p is not None
    assert p.shape == (4, COUNT, target.vocabulary)
    torch.testing.assert_close(p.sum(-1), torch.ones(4, COUNT, dtype=p.dtype))
    assert not p[..., ~known.t2d_V].any()
    assert (p.gather(-1, drawn.tokens_BK[..., None]) > 0).all()
    answer = _going_on(text, chosen_B).answers(draft)[0][:, T - 1]
    torch.testing.assert_close(p[:, 0, known.ids_D], (draft.logits(answer) / 0.7).softmax(-1))


def _going_on(text: Text, chosen_B: torch.Tensor) -> Text:
    """With one token more, of which nothing was computed."""
    tokens_BT = torch.cat((text.tokens_BT, chosen_B[:, None]), 1)
    hidden, *tapped = (pad(part, (0, 0, 0, 1)) for part in (text.features.hidden_BTH, *text.features.tapped))
    return Text(tokens_BT, torch.arange(T + 1).expand_as(tokens_BT), Features(hidden, tuple(tapped)))


@pytest.mark.parametrize("family", ["Qwen3", "Gemma2", "DeepseekV3", "Cohere", "Phi", "GPTNeoX", "Gemma3Text", "Bloom"])
@BOTH
def test_targets_of_every_kind_are_drafted_for(method: str, family: str, target_of: MakeTarget) -> None:
    """Tied heads, soft caps, factors, biases, other sizes of heads, no rotary positions of their own."""
    target = target_of(family)
    draft = made(method, target)
    tokens_BT = torch.randint(1, target.vocabulary, (2, T), generator=torch.Generator().manual_seed(2))
    features = target.look({"input_ids": tokens_BT})
    drafter = draft.drafter(2)
    drafter.read(tokens_BT, torch.ones(2, T, dtype=torch.bool), features)
    proposal = drafter.propose(tokens_BT[:, -1], COUNT, GREEDY, None)
    assert proposal.tokens_BK.shape == (2, COUNT)
    for k, hidden in enumerate(draft.answers(tokens_BT, torch.arange(T).expand(2, -1), features, COUNT)):
        said = draft.logits(hidden, k)
        assert said.shape == (2, T, target.vocabulary)
        assert said.dtype == torch.float32
        assert said.isfinite().all()
    borrowed = {id(parameter) for parameter in target.model.parameters()}
    assert not any(id(parameter) in borrowed for parameter in draft.parameters())


@BOTH
def test_training_brings_a_draft_nearer_to_its_target(method: str, stdlib_model: Any) -> None:
    """On held-out text, every answer, in a few steps."""
    target = Target(stdlib_model, taps=spread_taps(6, 5))
    windows = python_windows(stdlib_model, ("argparse",), 32)
    draft = made(method, target)
    frozen = {name: parameter.clone() for name, parameter in target.model.named_parameters()}
    lesson = Lesson(draft, target, COUNT, rate=1e-3)
    held_out = windows[-6:]
    before = lesson.kl(held_out)
    for step in range(8):
        lesson.step(windows[4 * step : 4 * step + 4])
    after = lesson.kl(held_out)
    assert all(now < then for now, then in zip(after, before, strict=True)), (before, after)
    assert all(torch.equal(parameter, frozen[name]) for name, parameter in target.model.named_parameters())
