"""An estimate as a whole: which stages it has, how it grows, and what it says stands against a recipe."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.engine_runs import recipe_for, run_here
from test_optcore_estimate_facts import LLAMA_70B, llama

from optcore import foresight
from optcore.errors import OutOfDisk, OutOfMemory
from optcore.estimate.document import Estimate, Machine, Problem
from optcore.estimate.estimate import estimate
from optcore.estimate.facts import ModelFacts, from_folder
from optcore.estimate.seen import read_seen
from optcore.events import AnyEvent, RunEstimated, StageStarted
from optcore.plan import stage_names
from optcore.recipe import Recipe, load_recipe, recipe_from

ROOT = Path(__file__).parent.parent.parent
GIB = 2**30
H200 = Machine(
    device="cuda",
    gpus=1,
    gpu_kind="NVIDIA H200",
    gpu_memory_bytes=139 * GIB,
    host_memory_bytes=512 * GIB,
    cores=32,
    disk_free_bytes=4000 * GIB,
)
RTX_4090 = H200.model_copy(update={"gpu_kind": "NVIDIA GeForce RTX 4090", "gpu_memory_bytes": 24 * GIB})


def large(*chain: dict[str, Any], **more: Any) -> Recipe:
    """A recipe for the 70B model."""
    return recipe_from({"model": {"id": "a/b"}, "chain": list(chain), **more})


def fatal(found: Estimate) -> list[Problem]:
    """What stands against it."""
    return [problem for problem in found.problems if problem.fatal]


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_of_the_docs_has_an_estimate_of_each_stage(path: Path, stdlib_model: Path) -> None:
    recipe = load_recipe(path)
    found = estimate(recipe, LLAMA_70B if recipe.model.id else from_folder(stdlib_model), Machine(cores=8))
    if not fatal(found) and not recipe.is_race:
        assert tuple(stage.stage for stage in found.stages) == stage_names(recipe)
    for stage in found.stages:
        assert 0 < stage.seconds_low < stage.seconds < stage.seconds_high, stage
        assert stage.host_memory_bytes > 10**7


@pytest.mark.parametrize(
    ("field", "values"), [("samples", (16, 64, 256, 1024)), ("sequence_length", (128, 256, 512, 1024))]
)
def test_more_text_takes_longer_and_more_room(field: str, values: tuple[int, ...], stdlib_model: Path) -> None:
    facts, seconds, memory = from_folder(stdlib_model), list[float](), list[int]()
    for value in values:
        document = recipe_for(stdlib_model, {"technique": "ptq", "scheme": "int4_g32"})
        document["calibration"][field] = value
        found = estimate(recipe_from(document), facts, Machine(cores=2))
        seconds.append(found.seconds)
        memory.append(found.host_memory_bytes)
    assert seconds == sorted(set(seconds))
    assert memory == sorted(memory)


def test_70b_is_quantized_on_an_h200_and_on_24_gib() -> None:
    """Layers stream through the GPU: one of 0.86 billion parameters, and its Gram matrices, fit both."""
    recipe = large({"technique": "ptq", "scheme": "nvfp4"})
    fast, slow = estimate(recipe, LLAMA_70B, H200), estimate(recipe, LLAMA_70B, RTX_4090)
    assert fast.fits
    quantizing = fast.of("1-ptq")
    assert quantizing
    assert 4 * GIB < quantizing.gpu_memory_bytes < 40 * GIB
    assert fast.seconds < slow.seconds
    (result,) = fast.results
    assert result.weight_bytes == pytest.approx(2 * 2 * 8192 * 128_256 + 68_451_041_280 * 4.5 / 8, rel=0.01)
    assert fast.disk_bytes > LLAMA_70B.weight_bytes  # the download


def test_70b_is_not_trained_on_24_gib() -> None:
    recipe = large({"technique": "ptq", "scheme": "int4"}, {"technique": "qad", "steps": 10})
    found = estimate(recipe, LLAMA_70B, RTX_4090)
    assert not found.fits
    (problem,) = (one for one in fatal(found) if "GPU memory" in one.message)
    assert "stage 2-qad needs about" in problem.message
    assert "24.0 are there" in problem.message
    assert problem.field == "/chain/1"
    assert "scope: block" in problem.remedy


def test_training_is_spread_over_all_gpus() -> None:
    recipe = large({"technique": "ptq", "scheme": "int4"}, {"technique": "qad", "steps": 1000, "batch": 8})
    one, eight = (estimate(recipe, LLAMA_70B, H200.model_copy(update={"gpus": gpus})).stages[3] for gpus in (1, 8))
    assert one.stage == eight.stage == "2-qad"
    assert eight.gpu_memory_bytes < 0.5 * one.gpu_memory_bytes
    assert eight.seconds < 0.5 * one.seconds


def test_training_layer_by_layer_takes_as_long_as_the_model_is_deep() -> None:
    """Each layer has the steps: not each of them those of the whole model."""
    recipe = large({"technique": "ptq", "scheme": "int4"}, {"technique": "qad", "steps": 1000, "scope": "block"})
    depths = [llama(layers, 1024, 4096, 16, 8, 32_000) for layers in (8, 16, 32)]
    few, more, many = (estimate(recipe, facts, Machine(cores=8)).stages[3] for facts in depths)
    assert few.stage == "2-qad"
    assert many.seconds - more.seconds == pytest.approx(2 * (more.seconds - few.seconds), rel=0.01)


def test_what_may_still_go_well_is_said_and_not_refused() -> None:
    recipe = large({"technique": "ptq", "scheme": "nvfp4"}, evaluate=[])
    needs = estimate(recipe, LLAMA_70B, H200).gpu_memory_bytes
    tight = H200.model_copy(update={"gpu_memory_bytes": round(needs / 1.2)})
    found = estimate(recipe, LLAMA_70B, tight)
    assert found.fits
    assert [problem.fatal for problem in found.problems] == [False]


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"hardware": {"device": "cuda"}}, "/hardware/device", "asks for cuda"),
        ({"limits": {"max_run_seconds": 1}}, "/limits/max_run_seconds", "may take 1"),
        ({"chain": [{"technique": "ptq", "scheme": "int4_g64", "overrides": []}]}, "/chain/0/scheme", "groups of 64"),
        ({"target": {"format": "awq"}}, "/chain/0/scheme", "cannot hold"),
        ({"target": {"format": "gguf", "engine": "vllm"}}, "/chain/0/scheme", "cannot hold"),
    ],
)
def test_problems_name_the_field(change: dict[str, Any], field: str, message: str, stdlib_model: Path) -> None:
    facts = from_folder(stdlib_model)
    odd = facts.with_tensors(
        one._replace(shape=(one.shape[0], 96)) if "down_proj" in one.name else one for one in facts.tensors
    )
    document = recipe_for(stdlib_model, {"technique": "ptq", "scheme": "nvfp4"}) | change
    found = estimate(recipe_from(document), odd, Machine())
    assert [problem.field for problem in fatal(found)] == [field], found.problems
    assert message in fatal(found)[0].message
    assert fatal(found)[0].of_machine == (field.split("/")[1] in ("hardware", "limits")), "or no machine can run it"


def test_windows_that_are_cut_are_told(stdlib_model: Path) -> None:
    document = recipe_for(stdlib_model, {"technique": "ptq", "scheme": "int4_g32"})
    document["calibration"]["sequence_length"] = 4096
    found = estimate(recipe_from(document), from_folder(stdlib_model), Machine())
    assert [(problem.field, problem.fatal) for problem in found.problems] == [("/calibration/sequence_length", False)]


def test_an_unknown_architecture_has_wide_ranges(stdlib_model: Path) -> None:
    facts = from_folder(stdlib_model)
    odd = facts.with_tensors(facts.tensors, is_known=False)
    recipe = recipe_from(recipe_for(stdlib_model, {"technique": "ptq", "scheme": "int4_g32"}))
    known, unknown = (estimate(recipe, each, Machine()).stages[1] for each in (facts, odd))
    assert unknown.seconds_high > known.seconds_high
    assert unknown.seconds == known.seconds


PLAIN = {"technique": "ptq", "scheme": "int4_g32", "rounding": "nearest", "smoothing": "none", "scale_search": "max"}


def test_a_run_says_what_to_expect_and_learns(stdlib_model: Path, tmp_path: Path) -> None:
    document = recipe_for(stdlib_model, PLAIN)
    ran = run_here(document, tmp_path, "out")
    (told,) = (event for event in ran.events if isinstance(event, RunEstimated))
    assert [stage.stage for stage in told.stages] == ["1-ptq", "2-export", "3-evaluate"]
    report = ran.report()
    assert [stage["stage"] for stage in report["expected"]] == ["1-ptq", "2-export", "3-evaluate"]
    weighs = next(row["result"] for row in report["measurements"] if row["name"] == "weight_bytes")
    assert report["expected_bytes"] == pytest.approx(weighs, rel=0.03)
    seen = read_seen(tmp_path / "work")
    assert [one.kind for one in seen] == ["ptq nearest", "export compressed-tensors", "evaluate nothing"]
    again = run_here(document, tmp_path, "again")
    assert again.digest == ran.digest
    assert read_seen(tmp_path / "work") == seen  # what was found done taught nothing
    (told,) = (event for event in again.events if isinstance(event, RunEstimated))
    assert [stage.learned_from for stage in told.stages] == [1, 1, 1]


@pytest.mark.parametrize(
    ("machine", "error"),
    [
        (Machine(host_memory_bytes=10**8, disk_free_bytes=10**12), OutOfMemory),
        (Machine(host_memory_bytes=10**12, disk_free_bytes=10**5), OutOfDisk),
    ],
)
def test_an_impossible_run_is_refused_before_any_work(
    machine: Machine,
    error: type[Exception],
    stdlib_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a machine with so much memory, or so small a disk."""
    monkeypatch.setattr(foresight, "this_machine", lambda _: machine)
    events = list[AnyEvent]()
    with pytest.raises(error, match=r"need|leave") as caught:
        run_here(recipe_for(stdlib_model, PLAIN), tmp_path, "out", events)
    assert "refused before any work" in str(caught.value)
    assert caught.value.remedy  # type: ignore[attr-defined]
    assert [event.stage for event in events if isinstance(event, StageStarted)] == ["0-fetch"]
    assert any(isinstance(event, RunEstimated) for event in events)


def test_the_program_estimates_without_a_download(stdlib_model: Path, tmp_path: Path) -> None:
    def ask(document: dict[str, Any]) -> tuple[int, str]:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
        command = [sys.executable, "-m", "optcore", "estimate", str(tmp_path / "recipe.yaml"), "--work"]
        done = subprocess.run([*command, str(tmp_path / "work")], capture_output=True, text=True, cwd=ROOT)
        return done.returncode, done.stdout

    status, said = ask(recipe_for(stdlib_model, PLAIN))
    found = Estimate.model_validate_json(said)
    assert (status, [stage.stage for stage in found.stages][:2]) == (0, ["0-fetch", "1-ptq"])
    status, said = ask({**recipe_for(stdlib_model, PLAIN), "model": {"id": "nobody/nothing"}})
    failure = json.loads(said)["failure"]
    assert (status, failure["code"], failure["field"]) == (1, "source_not_found", "/model")


def test_nothing_is_known_of_other_models(stdlib_model: Path) -> None:
    """A teacher whose headers are not here counts as the source; with them the estimate follows."""
    recipe = recipe_from(
        recipe_for(stdlib_model, {"technique": "distill", "steps": 4, "teacher": {"id": "a/larger"}})
        | {"target": {"format": "dense"}}
    )
    facts = from_folder(stdlib_model)
    alone = estimate(recipe, facts, Machine())
    others: dict[str, ModelFacts] = {"/chain/0/teacher": LLAMA_70B}
    beside = estimate(recipe, facts, Machine(), others=others)
    assert beside.host_memory_bytes > alone.host_memory_bytes + LLAMA_70B.weight_bytes
