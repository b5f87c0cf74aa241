"""Acceptance measured on the shipped model, with itself less two layers as the draft, against loops that draft."""

import itertools
import json
import time
from pathlib import Path

import pytest
import torch
from fixtures.skipping_draft import SAMPLED, LookingUp, Skipping, drafting_loop, skipping

from optcore.draft_made import MADE, Asked, read_made
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.errors import BadCheckpoint, DataError
from optcore.speculative.acceptance import AcceptanceFacts, measure_acceptance
from optcore.speculative.cost import Cost, Decoded, Wall, measure_cost, measure_wall, real_tau
from optcore.speculative.own_text import OwnText, write_text
from optcore.speculative.sampling import GREEDY, Sampling, probabilities
from optcore.speculative.target import Target
from optcore.speculative.teacher_forced import followed, teacher_forced
from optcore.training.generate import continued

COUNT, NEW, PROMPT, ROWS = 4, 16, 12, 3


@pytest.fixture(scope="module")
def draft(stdlib_model: Path) -> Skipping:
    return skipping(stdlib_model)


@pytest.fixture(scope="module")
def target(draft: Skipping) -> Target:
    return draft.target


@pytest.fixture(scope="module")
def prompts(target: Target) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    begun = torch.randint(3, target.vocabulary, (ROWS, 2), generator=generator)
    return continued(target.model, begun, PROMPT, 1.0, generator)


@pytest.fixture(scope="module")
def greedy(target: Target, prompts: torch.Tensor) -> OwnText:
    return write_text(target, prompts, NEW, GREEDY, frozenset())


def test_the_target_goes_on_as_it_does_elsewhere(target: Target, prompts: torch.Tensor, greedy: OwnText) -> None:
    elsewhere = continued(target.model, prompts, PROMPT + NEW, 0.0, torch.Generator())
    assert torch.equal(greedy.tokens_ST, elsewhere)
    assert greedy.starts_S.tolist() == [NEW - 1] * ROWS


def test_a_text_counts_up_to_its_end(target: Target, prompts: torch.Tensor, greedy: OwnText) -> None:
    end = greedy.written()[0][6]
    text = write_text(target, prompts, NEW, GREEDY, frozenset({end}))
    for row, whole in zip(text.written(), greedy.written(), strict=True):
        assert row == whole[: whole.index(end) + 1 if end in whole else NEW]
    assert write_text(target, prompts[:1], NEW, GREEDY, frozenset({end})).tokens_ST.shape[1] == PROMPT + NEW


def test_a_greedy_walk_is_the_real_loop(
    target: Target, draft: Skipping, prompts: torch.Tensor, greedy: OwnText
) -> None:
    """D3: text and accept sequences are identical."""
    forced = teacher_forced(target, draft, greedy, COUNT, GREEDY)
    looped = [drafting_loop(draft, prompt, NEW, COUNT) for prompt in prompts.tolist()]
    assert greedy.written() == [written for written, _ in looped]
    assert forced.chains.accepted == [accepted for _, accepted in looped]
    assert len({kept for _, accepted in looped for kept in accepted}) > 2  # or it would show little


def test_odds_are_those_of_the_text(target: Target, draft: Skipping, prompts: torch.Tensor) -> None:
    sampling = Sampling(temperature=0.8, top_k=50, top_p=0.9)
    text = write_text(target, prompts, 6, sampling, frozenset(), seed=1)
    odds_SNK = teacher_forced(target, draft, text, COUNT, sampling).chains.odds_SNK
    row = text.tokens_ST[1].tolist()
    for start, k in itertools.product(range(5), range(COUNT)):
        place = PROMPT + start + 1 + k
        if place < len(row):
            hidden = target.look({"input_ids": torch.tensor([row[:place]])}).hidden_BTH[:, -1]
            p = probabilities(target.logits(hidden), sampling)[0, row[place]]
            q = draft.chances(row[:place], sampling)[row[place]]
            assert float(odds_SNK[1, start, k]) == pytest.approx(min(1.0, float(q / p)), abs=1e-4)
        else:
            assert odds_SNK[1, start, k] == 0


def test_a_small_draft_vocabulary_accepts_nothing_else(target: Target, prompts: torch.Tensor) -> None:
    text = write_text(target, prompts, NEW, SAMPLED, frozenset())
    written = torch.tensor(text.written())
    known = DraftVocabulary(written[0].unique(), target.vocabulary)
    forced = teacher_forced(target, Skipping(target, known), text, COUNT, SAMPLED)
    says_SN = torch.isin(written[:, 1:], known.ids_D)
    assert bool((forced.chains.odds_SNK[..., 0] > 0).eq(says_SN).all())
    logits = target.logits(target.look({"input_ids": text.tokens_ST}).hidden_BTH[:, PROMPT - 1 : -1])
    assert forced.covered == pytest.approx(float(logits.softmax(-1)[..., known.ids_D].sum(-1).mean()), rel=1e-5)


def test_n_grams_are_asked_at_every_start(greedy: OwnText) -> None:
    chains = followed(LookingUp(ROWS), greedy, COUNT)
    for row, accepted in zip(greedy.tokens_ST.tolist(), chains.accepted, strict=True):
        at, expected = PROMPT, []
        while at < len(row) - 1:
            guesses = LookingUp.guess(row[:at], row[at], COUNT)
            kept = sum(itertools.accumulate(map(int.__eq__, guesses, row[at + 1 : -1]), int.__mul__))
            expected.append(kept)
            at += kept + 1
        assert accepted == expected


def test_the_facts_are_of_both_temperatures(target: Target, draft: Skipping, prompts: torch.Tensor) -> None:
    facts = measure_acceptance(target, draft, LookingUp, prompts, count=COUNT, new_tokens=NEW, sampled=SAMPLED, seed=3)
    text = write_text(target, prompts, NEW, SAMPLED, frozenset(), 3)
    assert facts.sampled.draft is not None
    assert facts.sampled.draft.tau == teacher_forced(target, draft, text, COUNT, SAMPLED).chains.tau
    assert facts.sampled.ngram.tau == followed(LookingUp(ROWS), text, COUNT).tau
    for found in (facts.greedy, facts.sampled):
        assert found.draft is not None
        assert found.draft.interval.low <= found.draft.tau <= found.draft.interval.high
        assert len(found.draft.conditional) == COUNT
        assert (found.prompts, found.tokens) == (ROWS, ROWS * (NEW - 1))
    assert facts.greedy.sampling == GREEDY
    assert facts.covered == pytest.approx(1, abs=1e-6)
    assert AcceptanceFacts.model_validate_json(facts.model_dump_json()) == facts


def test_loops_are_counted_and_left_out(target: Target, draft: Skipping) -> None:
    """A random token makes this small model go round in circles."""
    prompts = torch.arange(300, 308)[:, None].expand(-1, 4)
    facts = measure_acceptance(target, draft, LookingUp, prompts, count=COUNT, new_tokens=48, sampled=SAMPLED).greedy
    assert 0 < facts.looping < 1
    assert facts.ngram.tau_without_loops is not None
    assert facts.ngram.tau_without_loops < facts.ngram.tau


def test_a_target_without_words_is_refused(target: Target, draft: Skipping, prompts: torch.Tensor) -> None:
    silent = frozenset(range(target.vocabulary))
    with pytest.raises(DataError, match="ends every text at once"):
        measure_acceptance(target, draft, LookingUp, prompts, count=COUNT, new_tokens=NEW, sampled=SAMPLED, ends=silent)


def test_what_a_draft_achieved_stays_beside_it(
    target: Target, draft: Skipping, prompts: torch.Tensor, tmp_path: Path
) -> None:
    facts = measure_acceptance(target, draft, LookingUp, prompts, count=2, new_tokens=4, sampled=SAMPLED)
    made = facts.made
    assert made
    assert (made.asked.count, made.asked.new_tokens, made.asked.temperature, made.asked.seed) == (2, 4, 1, 0)
    assert (made.greedy, made.sampled) == (facts.greedy.own.length, facts.sampled.own.length)
    assert read_made(tmp_path) is None
    made.save(tmp_path)
    assert read_made(tmp_path) == made
    (tmp_path / MADE).write_text("{}")
    with pytest.raises(BadCheckpoint, match=MADE) as caught:
        read_made(tmp_path, "/chain/1/start")
    assert caught.value.field == "/chain/1/start"


def test_only_the_same_prompts_and_the_same_seed_are_the_same_question(
    target: Target, draft: Skipping, prompts: torch.Tensor
) -> None:
    def asked(prompts_SP: torch.Tensor, seed: int) -> Asked:
        settings = {"count": 2, "new_tokens": 4, "sampled": SAMPLED}
        return measure_acceptance(target, draft, LookingUp, prompts_SP, seed=seed, **settings).asked

    other = prompts.clone()
    other[-1, -1] += 1
    first = asked(prompts, 3)
    assert first == asked(prompts.clone(), 3)
    assert first != asked(other, 3)
    assert first != asked(prompts, 4)


@pytest.mark.parametrize(
    ("tau", "low", "high", "is_possible"),
    [
        (2.0, 1.5, 2.5, True),
        (3.0, 3.0, 3.0, True),  # two drafted tokens and the model's own
        (-5.0, 1.0, 2.0, False),
        (1e300, 1.0, 2.0, False),
        (2.0, 0.5, 2.5, False),
        (2.0, 1.5, 3.5, False),
        (2.0, 2.5, 1.5, False),
    ],
)
def test_what_no_draft_can_achieve_is_refused(
    tau: float, low: float, high: float, is_possible: bool, tmp_path: Path
) -> None:
    asked = {"count": 2, "prompts": 2, "prompt_tokens": 8, "new_tokens": 8, "temperature": 1, "text": "", "seed": 0}
    fair = {"tau": 2.0, "interval": {"low": 1.5, "high": 2.5}}
    said = {"asked": asked | {"top_k": None, "top_p": None}, "greedy": fair, "sampled": fair}
    for name in ("greedy", "sampled"):
        document = said | {name: {"tau": tau, "interval": {"low": low, "high": high}}}
        (tmp_path / MADE).write_text(json.dumps(document))
        if is_possible:
            assert read_made(tmp_path)
        else:
            with pytest.raises(BadCheckpoint, match=name):
                read_made(tmp_path)


def test_speed_ups_follow_from_times() -> None:
    cost = Cost(batch=1, target=2.0, verification=3.0, draft=1.0)
    assert (cost.ratio, cost.ideal(3.0), cost.predicted(3.0)) == (0.5, 2.0, 1.5)
    assert Wall(batch=1, sampling=GREEDY, plain=4.0, drafted=5.0, tau=1.0).speedup == 0.8


def test_times_are_of_work_that_was_done(target: Target, draft: Skipping, prompts: torch.Tensor) -> None:
    """Six layers over six times the tokens, or computing all anew for each token, cannot cost less."""
    cost = measure_cost(target, draft.drafter(1), prompts[:1], count=5, read=2)
    assert cost.batch == 1
    assert 0 < cost.target < cost.verification
    assert cost.draft > cost.target


def test_walls_are_of_decoding_by_turns(target: Target, draft: Skipping, prompts: torch.Tensor) -> None:
    few, started = 6, time.perf_counter()
    wall = measure_wall(target, prompts[:1].tolist(), draft.drafter, new_tokens=few, count=COUNT, sampling=GREEDY)
    text = write_text(target, prompts[:1], few, GREEDY, frozenset())
    assert wall
    assert wall.tau == pytest.approx(teacher_forced(target, draft, text, COUNT, GREEDY).chains.tau)
    assert 0 < few * (wall.plain + wall.drafted) < time.perf_counter() - started, "seconds are of one token"
    assert wall.speedup == wall.plain / wall.drafted
    assert real_tau(Decoded([[1, 2, 3]], [[1]], 2)) == 2.0


def test_walls_are_of_texts_up_to_their_end(target: Target, draft: Skipping, prompts: torch.Tensor) -> None:
    """As many rounds as the texts have that acceptance is measured on, in which a text ends where it would."""
    free = write_text(target, prompts[:2], NEW, GREEDY, frozenset()).written()
    ends = frozenset({free[0][5]})
    text = write_text(target, prompts[:2], NEW, GREEDY, ends)
    assert text.lengths_S.tolist()[0] <= 6

    def measured(ends: frozenset[int]) -> Wall | None:
        begun = prompts[:2].tolist()
        return measure_wall(target, begun, draft.drafter, new_tokens=NEW, count=COUNT, sampling=GREEDY, ends=ends)

    wall = measured(ends)
    assert wall
    assert wall.tau == pytest.approx(teacher_forced(target, draft, text, COUNT, GREEDY).chains.tau)
    assert measured(frozenset(row[0] for row in free)) is None, "nothing is drafted"
