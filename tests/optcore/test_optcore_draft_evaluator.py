"""What a report says of a draft, from facts and from a run."""

from pathlib import Path

import pytest
from fixtures.exporting import run_of
from fixtures.skipping_draft import SAMPLED, skipping

from optcore.acceptance_length import AcceptanceLength, Interval
from optcore.draft_made import Asked, Made
from optcore.errors import RecipeError
from optcore.evaluate import Acceptance
from optcore.evaluate.acceptance_rows import rows_of, series_of, warnings_of
from optcore.evaluate.acceptance_stream import measure_on
from optcore.report import Measurement
from optcore.speculative.acceptance import AcceptanceFacts, Accepted, AcceptedAt
from optcore.speculative.cost import Cost, Wall
from optcore.speculative.ngram import NgramDrafter
from optcore.speculative.sampling import GREEDY, Sampling


def length(tau: float) -> AcceptanceLength:
    return AcceptanceLength(tau=tau, interval=Interval(low=max(1.0, tau - 0.1), high=min(3.0, tau + 0.1)))


def accepted(tau: float, without: float | None = None) -> Accepted:
    return Accepted(
        tau=tau,
        interval=Interval(low=tau - 0.1, high=tau + 0.1),
        survival=(0.75, 0.5),
        conditional=(0.75, None),
        tau_without_loops=without,
    )


def at(sampling: Sampling, draft: float | None, ngram: float, looping: float = 0.0) -> AcceptedAt:
    return AcceptedAt(
        sampling=sampling,
        prompts=32,
        tokens=4000,
        looping=looping,
        draft=accepted(draft, 1.8) if draft else None,
        ngram=accepted(ngram),
    )


COST = Cost(batch=1, target=2.0, verification=3.0, draft=1.0)
ASKED = Asked(count=2, prompts=32, prompt_tokens=64, new_tokens=128, text="a" * 64, seed=0, **SAMPLED.model_dump())
FACTS = AcceptanceFacts(
    asked=ASKED,
    greedy=at(GREEDY, 3.0, 1.9, looping=0.25),
    sampled=at(SAMPLED, 2.4, 1.2),
    covered=0.97,
    costs=(COST,),
    walls=(Wall(batch=1, sampling=GREEDY, plain=4.0, drafted=2.0, tau=3.1),),
)


def test_the_table_has_both_temperatures_and_n_grams() -> None:
    found = {row.name: row for row in rows_of(FACTS)}
    assert {name: row.result for name, row in found.items()} == {
        "acceptance_length_greedy": 3.0,
        "ngram_length_greedy": 1.9,
        "acceptance_length_sampled": 2.4,
        "ngram_length_sampled": 1.2,
        "draft_coverage": 0.97,
        "draft_cost_1": 0.5,
        "predicted_speedup_greedy_1": 1.5,
        "predicted_speedup_sampled_1": pytest.approx(1.2),
        "draft_speedup_greedy_1": 2.0,
    }
    assert "2.90 to 3.10 over 32 prompts, 4000 tokens" in found["acceptance_length_greedy"].note
    assert "a chain of 2, accepted by position where all before were: 75%, -" in found["ngram_length_sampled"].note
    assert {name for name, row in found.items() if "an engine's lookup may guess otherwise" in row.note} == {
        "ngram_length_greedy",
        "ngram_length_sampled",
    }
    assert found["predicted_speedup_greedy_1"].note.endswith("takes 1.50 passes; 2.00 where it takes one")


def test_the_curves_are_of_survival() -> None:
    found = series_of(FACTS)
    assert len({curve.name for curve in found}) == 4
    assert {curve.points for curve in found} == {((1.0, 0.75), (2.0, 0.5))}


def test_n_grams_alone_are_a_draft_too() -> None:
    alone = FACTS.model_copy(update={"greedy": at(GREEDY, None, 1.9), "sampled": at(SAMPLED, None, 1.2)})
    names = [row.name for row in rows_of(alone)]
    assert names[:2] == ["ngram_length_greedy", "ngram_length_sampled"]
    assert "draft_coverage" not in names
    assert len(series_of(alone)) == 2
    assert list(warnings_of(alone, None)) == []
    assert alone.made is None, "no change of the model makes them worse by itself"


def test_a_reader_is_warned_of_what_flatters_and_of_what_is_useless() -> None:
    slow = Wall(batch=8, sampling=SAMPLED, plain=2.0, drafted=4.0, tau=1.1)
    facts = FACTS.model_copy(update={"sampled": at(SAMPLED, 1.1, 1.2), "walls": (*FACTS.walls, slow)})
    said = list(warnings_of(facts, None))
    assert [warning.split(":")[0] for warning in said] == [
        "25% of the greedy texts go round in circles, which are easily guessed",
        "at temperature 1, n-grams guess better than the draft, and cost nothing",
        "the draft slows this machine down",
    ]
    assert said[0].endswith("without them 1.80 tokens a pass, and not 3.00")
    assert "8 sequences decoded at 0.50 times" in said[2]


def achieved(greedy: float, sampled: float, **asked: object) -> Made:
    return Made(asked=ASKED.model_copy(update=asked), greedy=length(greedy), sampled=length(sampled))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (achieved(2.87, 2.53), []),  # within the error of both
        (achieved(1.0, 3.0, prompts=2), []),
        (achieved(1.0, 3.0, text="b" * 64), []),  # code is not prose
        (achieved(1.0, 3.0, seed=1), []),
        (achieved(1.0, 3.0, count=3), []),
        (achieved(2.8, 2.4), ["where it was measured before"]),
        (achieved(3.0, 2.8), ["measured before: train it again on this one"]),
    ],
)
def test_a_draft_that_lost_touch_is_to_be_trained_again(made: Made, said: list[str]) -> None:
    facts = FACTS.model_copy(update={"greedy": at(GREEDY, 3.0, 1.9)})
    found = list(warnings_of(facts, made))
    assert len(found) == len(said)
    assert all(warning.endswith(end) for warning, end in zip(found, said, strict=True))


def measured(model: Path, folder: Path, evaluator: Acceptance) -> tuple[list[Measurement], dict[str, object]]:
    run, draft = run_of(model, model, folder), skipping(model)
    rows = measure_on(run, evaluator, draft.target, draft, NgramDrafter)
    return rows, run.results


def test_a_run_leaves_rows_curves_and_facts(stdlib_model: Path, tmp_path: Path) -> None:
    evaluator = Acceptance(prompts=2, prompt_tokens=8, new_tokens=8, tokens=2, batches=(8,))
    rows, results = measured(stdlib_model, tmp_path, evaluator)
    facts = AcceptanceFacts.model_validate(results["acceptance"])
    assert rows == rows_of(facts)
    assert results["series"] == [curve.model_dump(mode="json") for curve in series_of(facts)]
    assert results.get("notices", []) == list(warnings_of(facts, None))
    assert [cost.batch for cost in facts.costs] == [2]  # as many as there are prompts
    assert [(wall.batch, wall.sampling) for wall in facts.walls] == [(2, GREEDY), (2, SAMPLED)]
    assert all(1 <= wall.tau <= 3 and wall.plain > 0 for wall in facts.walls)


def test_texts_that_the_model_cannot_hold_are_refused(stdlib_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="1024 tokens, and 1024 are to be written"):
        measured(stdlib_model, tmp_path, Acceptance(new_tokens=1024, timed=False))
