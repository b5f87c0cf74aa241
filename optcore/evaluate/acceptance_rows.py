"""What a report says of a draft: rows, curves and warnings made of the facts."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from optcore.report import Measurement, Series

if TYPE_CHECKING:
    from optcore.acceptance_length import AcceptanceLength
    from optcore.draft_made import Made
    from optcore.speculative.acceptance import AcceptanceFacts, Accepted, AcceptedAt
    from optcore.speculative.cost import Cost, Wall

_RETRAIN = 0.9
"""Of the acceptance length at its making: what a draft that has less of is worth training again."""

_OWN_LOOKUP = (
    "; an engine's lookup may guess otherwise than the one measured here, which goes on from where the longest of the "
    "last four to one tokens stood last, and through its own guesses"
)


def rows_of(facts: "AcceptanceFacts") -> list[Measurement]:
    """The table: acceptance lengths first, then costs and speed-ups by the number of sequences."""
    return [*_lengths(facts), *(row for cost in facts.costs for row in _costs(facts, cost)), *map(_wall, facts.walls)]


def series_of(facts: "AcceptanceFacts") -> list[Series]:
    """Survival by position, of the draft and of n-grams."""
    found = []
    for key, at in _both(facts):
        for who, accepted in (("draft", at.draft), ("n-grams", at.ngram)):
            if accepted and accepted.survival:
                title = f"Rounds in which so many drafted tokens are accepted at least: {who}, {_how(at)}"
                points = tuple((float(k), share) for k, share in enumerate(accepted.survival, start=1))
                found.append(Series(name=f"{who}-survival-{key}", title=title, unit="share", points=points))
    return found


def warnings_of(facts: "AcceptanceFacts", made: "Made | None") -> Iterator[str]:
    """What a reader should know, for people. `made` is what the draft achieved before, which compares where the same
    was asked."""
    if facts.greedy.looping:
        yield _of_loops(facts.greedy)
    for _, at in _both(facts):
        if at.draft and at.draft.tau < at.ngram.tau:
            yield (
                f"{_how(at)}, n-grams guess better than the draft, and cost nothing: {at.ngram.tau:.2f} tokens a pass "
                f"against {at.draft.tau:.2f}"
            )
    slow = {wall.batch: wall for wall in facts.walls if wall.speedup < 1}
    for wall in slow.values():
        yield (
            f"the draft slows this machine down: {_together(wall.batch)} decoded at {wall.speedup:.2f} times the speed "
            "of decoding without"
        )
    if made and made.asked == facts.asked:
        yield from (
            _moved(at, before)
            for at, before in ((facts.greedy, made.greedy), (facts.sampled, made.sampled))
            if at.own.differs_from(before)
        )


def _lengths(facts: "AcceptanceFacts") -> Iterator[Measurement]:
    for key, at in _both(facts):
        for name, title, accepted in (
            ("acceptance_length", "Tokens a pass with the draft", at.draft),
            ("ngram_length", "Tokens a pass with n-grams", at.ngram),
        ):
            if accepted:
                yield Measurement(
                    name=f"{name}_{key}",
                    title=f"{title}, {_how(at)}",
                    unit="tokens/pass",
                    source=None,
                    result=accepted.tau,
                    better="higher",
                    note=_note(facts, at, accepted) + (_OWN_LOOKUP if accepted is at.ngram else ""),
                )
    if facts.greedy.draft and facts.covered < 1:
        note = "probability that the model gives to tokens which the draft can say"
        yield _row("draft_coverage", "Covered by the draft's vocabulary", facts.covered, "share", "higher", note)


def _costs(facts: "AcceptanceFacts", cost: "Cost") -> Iterator[Measurement]:
    together = _together(cost.batch)
    note = f"a proposal of {facts.count} tokens over a pass of the model on this machine; {together}"
    yield _row(f"draft_cost_{cost.batch}", f"Cost of drafting, {together}", cost.ratio, "passes", "lower", note)
    for key, at in _both(facts):
        tau = at.own.tau
        note = (
            f"from times of single passes: a verification of {facts.count} drafted tokens takes "
            f"{cost.verification / cost.target:.2f} passes; {cost.ideal(tau):.2f} where it takes one"
        )
        title = f"Predicted speed-up, {_how(at)}, {together}"
        yield _row(f"predicted_speedup_{key}_{cost.batch}", title, cost.predicted(tau), "times", "higher", note)


def _wall(wall: "Wall") -> Measurement:
    key = "sampled" if wall.sampling.temperature else "greedy"
    how, together = _at(wall.sampling.temperature), _together(wall.batch)
    note = f"time a token of texts written with and without, by turns; {wall.tau:.2f} tokens a pass in these texts"
    title = f"Measured speed-up, {how}, {together}"
    return _row(f"draft_speedup_{key}_{wall.batch}", title, wall.speedup, "times", "higher", note)


def _row(name: str, title: str, value: float, unit: str, better: Literal["lower", "higher"], note: str) -> Measurement:
    return Measurement(name=name, title=title, unit=unit, source=None, result=value, better=better, note=note)


def _both(facts: "AcceptanceFacts") -> tuple[tuple[str, "AcceptedAt"], ...]:
    return (("greedy", facts.greedy), ("sampled", facts.sampled))


def _note(facts: "AcceptanceFacts", at: "AcceptedAt", accepted: "Accepted") -> str:
    interval = accepted.interval
    shares = ", ".join("-" if share is None else f"{share:.0%}" for share in accepted.conditional)
    return (
        f"95 % interval {interval.low:.2f} to {interval.high:.2f} over {at.prompts} prompts, {at.tokens} tokens; a "
        f"chain of {facts.count}, accepted by position where all before were: {shares}"
    )


def _of_loops(at: "AcceptedAt") -> str:
    said = f"{at.looping:.0%} of the greedy texts go round in circles, which are easily guessed"
    if at.own.tau_without_loops is None:
        return f"{said}: look at the sampled ones"
    return f"{said}: without them {at.own.tau_without_loops:.2f} tokens a pass, and not {at.own.tau:.2f}"


def _moved(at: "AcceptedAt", before: "AcceptanceLength") -> str:
    said = (
        f"{_how(at)}, the draft leaves {at.own.tau:.2f} tokens a pass, and left {before.tau:.2f} where it was "
        "measured before"
    )
    return f"{said}: train it again on this one" if at.own.tau < _RETRAIN * before.tau else said


def _how(at: "AcceptedAt") -> str:
    return _at(at.sampling.temperature)


def _at(temperature: float) -> str:
    return f"at temperature {temperature:g}" if temperature else "greedy"


def _together(batch: int) -> str:
    return "one sequence" if batch == 1 else f"{batch} sequences"
