"""What finished stages teach: factors that are known are found, and a few odd stages change nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from optcore.errors import RecipeError
from optcore.estimate.constants import PRIOR_spread
from optcore.estimate.document import Machine, StageCostSeen, StageEstimate
from optcore.estimate.learning import Correction, Rates
from optcore.estimate.problems import short_of_memory
from optcore.estimate.seen import FILE, load_rates_file, merged, note_seen, read_seen


def seen(kind: str, factor: float, *, machine: str = "cpu:8", memory: float = 1.0, raw: float = 10.0) -> StageCostSeen:
    """A stage that took so many times what the formula says."""
    return StageCostSeen(
        machine=machine,
        kind=kind,
        raw_seconds=raw,
        seconds=raw * factor,
        raw_memory_bytes=10**9,
        memory_bytes=round(10**9 * memory),
    )


def test_nothing_seen_is_the_formula_with_a_wide_range() -> None:
    assert Rates.from_seen([]).correction("cpu:8", "fetch") == Correction()
    assert Correction().high == 1 / Correction().low == PRIOR_spread


def test_a_machine_is_told_from_a_kind() -> None:
    """Twice as slow a machine, on which one kind takes three times what the others do."""
    stages = [seen(kind, 2.0) for kind in ("fetch", "ptq gptq", "data text", "prune") for _ in range(9)]
    rates = Rates.from_seen([*stages, *(seen("teacher", 6.0) for _ in range(9))])
    assert rates.correction("cpu:8", "ptq gptq").seconds == pytest.approx(2.0)
    assert rates.correction("cpu:8", "unheard of").seconds == pytest.approx(2.0)
    assert rates.correction("cpu:8", "teacher").seconds == pytest.approx(2.0 * 3 ** (9 / 10))
    assert rates.correction("cpu:64", "teacher").seconds == pytest.approx(3 ** (9 / 10))


def test_few_stages_are_believed_less_than_many() -> None:
    others = [seen("fetch", 1.0)] * 5
    once = Rates.from_seen([*others, seen("prune", 4.0)]).correction("cpu:8", "prune")
    often = Rates.from_seen([*others, *[seen("prune", 4.0)] * 4]).correction("cpu:8", "prune")
    assert once.seconds == pytest.approx(2.0)
    assert 2 < often.seconds < 4
    assert (once.learned_from, often.learned_from) == (1, 4)
    assert often.high < min(once.high, PRIOR_spread)


def test_outliers_do_no_harm() -> None:
    even = [seen("fetch", 1.0)] * 6 + [seen("prune", 1.5)] * 6
    odd = [seen("prune", 500.0), seen("fetch", 0.001)]
    calm, stirred = (Rates.from_seen(stages).correction("cpu:8", "prune") for stages in (even, even + odd))
    assert stirred.seconds == pytest.approx(calm.seconds, rel=0.15)


def test_memory_is_learned_by_kind() -> None:
    rates = Rates.from_seen([seen("prune", 1.0, memory=1.4)] * 19 + [seen("fetch", 1.0)])
    assert rates.correction("cpu:8", "prune").memory == pytest.approx(1.4 ** (19 / 20))
    assert rates.correction("cpu:8", "ptq gptq").memory == 1.0


def test_memory_is_learned_of_a_machines_own_stages() -> None:
    """Others' count where it has none, and nothing moves it far: jobs are refused for it."""
    rates = Rates.from_seen([seen("prune", 1.0, machine="cpu:2", memory=5.0)] * 30 + [seen("prune", 1.0)] * 10)
    assert rates.correction("cpu:8", "prune").memory == 1.0
    assert rates.correction("cpu:2", "prune").memory == pytest.approx(2.0)
    assert rates.correction("cpu:64", "prune").memory == pytest.approx(2.0)
    low = Rates.from_seen([seen("prune", 1.0, memory=0.05)] * 30)
    assert low.correction("cpu:8", "prune").memory == pytest.approx(0.5)


def test_what_others_taught_refuses_nothing_that_fits_by_the_formula() -> None:
    sizes = {"host_memory_bytes": 20 * 2**30, "raw_memory_bytes": 10 * 2**30}
    times = {"seconds": 1, "seconds_low": 1, "seconds_high": 1, "raw_seconds": 1}
    stage = StageEstimate(stage="1-ptq", kind="ptq gptq", learned_from=30, **times, **sizes)
    found = [next(short_of_memory(Machine(host_memory_bytes=gib * 2**30), [stage], {})) for gib in (12, 8)]
    assert [problem.fatal for problem in found] == [False, True]


def test_a_work_folder_remembers_and_forgets(tmp_path: Path) -> None:
    assert read_seen(tmp_path) == []
    stages = [seen("fetch", 1.0 + number / 1000) for number in range(3)]
    for stage in stages:
        note_seen(tmp_path, stage)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"machine": "cp')  # a process that was killed in the middle of a line
    assert read_seen(tmp_path) == stages
    assert merged(stages, [stages[1], seen("prune", 2.0)]) == (stages[1], seen("prune", 2.0), stages[0], stages[2])


def test_a_long_memory_is_cut(tmp_path: Path) -> None:
    line = seen("fetch", 1.0).model_dump_json()
    (tmp_path / FILE).write_text(f"{line}\n" * 2000)
    note_seen(tmp_path, seen("prune", 2.0))
    kept = read_seen(tmp_path)
    assert len(kept) == 1000
    assert kept[-1].kind == "prune"


def test_a_file_of_rates_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(f"[{seen('fetch', 2.0).model_dump_json()}]")
    assert load_rates_file(path) == [seen("fetch", 2.0)]
    path.write_text('[{"machine": 1}]')
    with pytest.raises(RecipeError, match=r"rates\.json"):
        load_rates_file(path)
    with pytest.raises(RecipeError, match="cannot read"):
        load_rates_file(tmp_path / "none.json")


def test_a_run_goes_on_without_what_it_cannot_read(tmp_path: Path) -> None:
    """What is said of the output folder comes behind the reading of the rates."""
    (tmp_path / "recipe.yaml").write_text("model: {id: a/b}\nchain: [{technique: ptq, scheme: nvfp4}]\n")
    (tmp_path / FILE).mkdir()
    assert read_seen(tmp_path) == []
    words = ["run", str(tmp_path / "recipe.yaml"), "--work", str(tmp_path), "--out", str(tmp_path)]
    command = [sys.executable, "-m", "optcore", *words, "--rates", str(tmp_path / "none.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "cannot read finished stages" in done.stderr
    assert "output folder" in json.loads(done.stdout)["failure"]["message"]


def test_what_was_corrected_says_so() -> None:
    rates = Rates.from_seen([seen("prune", 2.0)] * 4 + [seen("fetch", 2.0)] * 3)
    assert rates.correction("cpu:64", "prune").learned_from == 4
    elsewhere = rates.correction("cpu:8", "unheard of")
    assert elsewhere.seconds == pytest.approx(2.0)
    assert elsewhere.learned_from == 7
    assert rates.correction("cpu:64", "unheard of").learned_from == 0
