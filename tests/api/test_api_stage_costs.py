"""What finished stages took, and what is learned of it: written with the events, bounded, nobody's secret."""

import pytest
from sqlalchemy import select

from api import lifecycle
from api.lifecycle import Claim
from api.store import stage_costs, stages
from api.store.models import StageCost
from api.store.session import Sessions
from optcore.estimate.document import Machine, StageCostSeen, StageEstimate
from optcore.events import RunEstimated, RunPlanned, StageFinished, StageStarted

pytestmark = pytest.mark.integration
MACHINE = Machine(device="cuda", gpus=1, gpu_kind="NVIDIA H200")
SIZES = {"host_memory_bytes": 900, "raw_memory_bytes": 800}
EXPECTED = StageEstimate(
    stage="1-ptq", kind="ptq gptq", seconds=4, seconds_low=2, seconds_high=8, raw_seconds=5, **SIZES
)


def _finish(sessions: Sessions, claim: Claim, *, cached: bool = False, name: str = "1-ptq") -> None:
    with sessions.begin() as session:
        planned = (RunPlanned(stages=("1-ptq", "2-export")), RunEstimated(machine=MACHINE, stages=(EXPECTED,)))
        ended = StageFinished(stage=name, key="k", cached=cached, seconds=6.5, peak_memory_bytes=1000)
        lifecycle.record(session, claim, [*planned, StageStarted(stage=name, key="k"), ended])


def _seen(sessions: Sessions) -> list[StageCostSeen]:
    with sessions() as session:
        return list(stage_costs.recent(session))


def test_a_finished_stage_is_learned_from(sessions: Sessions, held: Claim) -> None:
    _finish(sessions, held)
    took = {"raw_seconds": 5, "seconds": 6.5, "raw_memory_bytes": 800, "memory_bytes": 1000}
    assert _seen(sessions) == [StageCostSeen(machine="cuda:NVIDIA H200", kind="ptq gptq", **took)]
    with sessions() as session:
        assert stages.of(session, [held.job_id])[0].estimate == EXPECTED.model_dump(mode="json")


def test_what_was_not_run_is_not_learned_from(sessions: Sessions, held: Claim) -> None:
    _finish(sessions, held, cached=True)
    _finish(sessions, held, name="2-export")  # of which nothing was expected
    assert _seen(sessions) == []


def test_a_later_attempt_is_not_learned_from(sessions: Sessions, held: Claim) -> None:
    """It may have found half of the work done."""
    with sessions.begin() as session:
        lifecycle.release(session, held)
    with sessions.begin() as session:
        again = lifecycle.claim(session, held.job_id, "w2")
    assert again is not None
    _finish(sessions, again)
    assert _seen(sessions) == []


def test_the_newest_of_each_kind_are_kept(sessions: Sessions) -> None:
    def cost(kind: str, seconds: float) -> StageCostSeen:
        return StageCostSeen(
            machine="cpu:2", kind=kind, raw_seconds=1, seconds=seconds, raw_memory_bytes=1, memory_bytes=1
        )

    with sessions.begin() as session:
        for seconds in range(1, stage_costs.KEPT + 6):
            stage_costs.remember(session, cost("ptq gptq", seconds))
        stage_costs.remember(session, cost("export", 1))
    with sessions.begin() as session:
        kept = stage_costs.recent(session)
        assert [one.seconds for one in kept if one.kind == "ptq gptq"] == list(range(6, stage_costs.KEPT + 6))
        assert stage_costs.forget_old(session) == 5
        assert len(session.scalars(select(StageCost)).all()) == stage_costs.KEPT + 1
