"""A draft that cannot be made is refused in seconds: before its target has written text for it, not after training."""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fixtures.draft_folders import FACTS
from fixtures.engine_runs import recipe_for
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from fixtures.whole_runs import stages_in_this_process
from safetensors.torch import load_file, save_file

from optcore.conductor import Emit
from optcore.drafts.build import build_draft
from optcore.drafts.folder import write_draft
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.engine import optimize
from optcore.errors import BadCheckpoint, Failure, OptError, OutOfMemory, RecipeError
from optcore.events import AnyEvent, StageFinished, StageStarted
from optcore.recipe import recipe_from
from optcore.run import Run
from optcore.speculative.outline import TargetOutline
from optcore.speculative.target import Target
from optcore.techniques import Draft
from optcore.training import memory
from optcore.training.draft_refusals import check_draft_plan

torch.set_num_threads(1)
DRAFT = {"technique": "draft", "steps": 2, "batch": 2, "sequence_length": 24, "tokens": 2}
WRITTEN = {"data": {"kind": "generated", "prompt_tokens": 8}, "validation": {"samples": 2}}


class Stopped(Exception):
    """What ends a run before text is prepared."""


class Walked(NamedTuple):
    """A run as far as the text that it would prepare."""

    failure: Failure | None
    started: list[StageStarted]
    cached: dict[str, bool]
    """The stages that ended, and whether they were found done."""

    @property
    def names(self) -> list[str]:
        """The stages that began."""
        return [event.stage for event in self.started]

    def refused(self) -> Failure:
        """What it ended with, before any text."""
        assert self.failure, self.names
        assert self.names == ["0-fetch", "1-draft-plan"]
        assert self.failure.stage == "1-draft-plan"
        assert self.failure.remedy
        return self.failure


def walked(model: Path, folder: Path, **draft: Any) -> Walked:
    events: list[AnyEvent] = []
    document = recipe_for(model, {**DRAFT, **WRITTEN, **draft}, target={"format": "dense"})
    failure = None
    with stages_in_this_process(), suppress(Stopped):  # what came before text is all that is looked at
        try:
            optimize(recipe_from(document), folder / "out", folder / "work", _until_text(events))
        except OptError as error:
            failure = error.failure()
    cached = {event.stage: event.cached for event in events if isinstance(event, StageFinished)}
    return Walked(failure, [event for event in events if isinstance(event, StageStarted)], cached)


def _until_text(events: list[AnyEvent]) -> Emit:
    def emit(event: AnyEvent) -> None:
        events.append(event)
        if isinstance(event, StageStarted) and event.stage.endswith("-data"):
            raise Stopped

    return emit


@pytest.fixture(scope="module")
def begun(tiny_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EAGLE-3 draft of the tiny Llama, which says 100 tokens."""
    target, folder = Target(tiny_model("Llama"), (0, 1)), tmp_path_factory.mktemp("begun")
    made = build_draft(Draft(), target, DraftVocabulary(torch.arange(100), target.vocabulary))
    write_draft(made, folder, "eagle", FACTS, tokens=2)
    return folder


def changed(draft: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy with other tensors."""
    shutil.copytree(draft, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"taps": [1]}, "reads the layers [0, 1], and `taps` are [1]"),
        ({"vocabulary": 90}, "says 100 tokens, and `vocabulary` is 90"),
        ({"method": "medusa"}, "is of the method eagle3, and not medusa"),
    ],
)
def test_what_the_draft_to_begin_with_says_otherwise_ends_a_run_before_text_is_written(
    begun: Path, tiny_model: MakeModel, tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    failure = walked(tiny_model("Llama"), tmp_path, start={"path": str(begun)}, **settings).refused()
    assert failure.code == RecipeError.code
    assert said in failure.message
    assert failure.field == "/chain/0/start"


def test_a_draft_to_begin_with_that_has_other_embeddings_does_too(
    begun: Path, tiny_model: MakeModel, tmp_path: Path
) -> None:
    def embed(tensors: dict[str, torch.Tensor]) -> None:
        tensors["embed_tokens.weight"] = torch.zeros(2048, 128)

    other = changed(begun, tmp_path / "other", embed)
    failure = walked(tiny_model("Llama"), tmp_path, start={"path": str(other)}).refused()
    assert failure.code == BadCheckpoint.code
    assert "has embeddings of its own" in failure.message


def test_heads_that_no_layout_can_say_end_a_run_before_text_is_written(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Phi's head has a bias, and Medusa's heads begin as its copies."""
    failure = walked(tiny_model("Phi"), tmp_path, method="medusa").refused()
    assert failure.code == RecipeError.code
    assert "without a bias" in failure.message
    assert "eagle3" in failure.remedy
    other = walked(tiny_model("Phi"), tmp_path, method="eagle3")
    assert other.failure is None
    assert other.names == ["0-fetch", "1-draft-plan", "1-draft-data"]


def test_drafts_that_are_planned_otherwise_share_their_windows(
    begun: Path, tiny_model: MakeModel, tmp_path: Path
) -> None:
    several: tuple[dict[str, Any], ...] = ({}, {"tokens": 3}, {"start": {"path": str(begun)}})
    runs = [walked(tiny_model("Llama"), tmp_path, **settings) for settings in several]
    events = [event for run in runs for event in run.started]
    keys = {name: {event.key for event in events if event.stage == name} for name in ("1-draft-plan", "1-draft-data")}
    assert len(keys["1-draft-plan"]) == 3
    assert len(keys["1-draft-data"]) == 1


def test_a_plan_is_found_done(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("Llama")
    assert not walked(model, tmp_path).cached["1-draft-plan"]
    assert walked(model, tmp_path).cached["1-draft-plan"]


def planned(model: Path, folder: Path, start: Path | None = None, **draft: Any) -> Run:
    run = run_of(model, model, folder)
    run.stage, run.models = "1-draft-plan", (start,) if start else ()
    named = {"start": {"path": str(start)}} if start else {}
    check_draft_plan(run, Draft.model_validate({**DRAFT, **named, **draft}))
    return run


def test_what_a_draft_will_be_is_left_in_the_results(begun: Path, tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("Llama")
    target, tensors = Target(model, (0, 1)), load_file(begun / "model.safetensors")
    made = build_draft(Draft(), target, DraftVocabulary.whole(2048))
    counted = sum(value.numel() for value in made.parameters())
    assert planned(model, tmp_path).results["draft"] == {"parameters": counted, "taps": [0, 1]}
    trained = sum(tensor.numel() for name, tensor in tensors.items() if name not in ("d2t", "t2d"))
    assert planned(model, tmp_path, begun).results["draft"] == {"parameters": trained, "taps": [0, 1]}


@pytest.mark.parametrize("method", ["eagle3", "medusa", "mtp", "block", "model"])
def test_every_method_is_planned_within_the_memory_there_is(
    method: str, tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft: Any = planned(tiny_model("Llama"), tmp_path, method=method).results["draft"]
    assert draft["parameters"] > 0
    monkeypatch.setattr(memory, "machine_bytes", lambda: 2.0**20)
    with pytest.raises(OutOfMemory, match="its target beside it"):
        planned(tiny_model("Llama"), tmp_path, method=method)


def test_a_model_with_fewer_layers_is_about_as_large_as_the_layers_that_stay(
    stdlib_model: Path, tiny_model: MakeModel, tmp_path: Path
) -> None:
    outline = TargetOutline(stdlib_model)
    inside = outline.parameters - outline.ends_parameters
    draft: Any = planned(stdlib_model, tmp_path, method="model", layers=2).results["draft"]
    assert draft == {"parameters": outline.ends_parameters + inside // 3}
    with pytest.raises(RecipeError, match="6 of the model's 6 layers would not be smaller") as caught:
        planned(stdlib_model, tmp_path, method="model", layers=6)
    assert caught.value.field == "/chain/0/layers"
    small = tiny_model("Llama")
    draft = planned(stdlib_model, tmp_path, small, method="model").results["draft"]
    assert draft == {"parameters": TargetOutline(small).parameters}


@pytest.mark.parametrize("steps", [0, 2])
def test_a_draft_for_a_model_of_another_width_is_refused(
    begun: Path, stdlib_model: Path, tmp_path: Path, steps: int
) -> None:
    with pytest.raises(OptError, match="says hidden_size: 128, and its target has 256"):
        planned(stdlib_model, tmp_path, begun, steps=steps)


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("family", ["Qwen3Next", "Lfm2"])
def test_a_model_with_a_recurrent_state_drafts_for_none_and_may_be_drafted_for(
    family: str, steps: int, tiny_model: MakeModel, tmp_path: Path
) -> None:
    recurrent, plain = tiny_model(family), tiny_model("Llama")
    for model, start in ((recurrent, None), (plain, recurrent)):
        with pytest.raises(RecipeError, match="cannot take back what was guessed in vain") as caught:
            planned(model, tmp_path, start, method="model", steps=steps)
        assert caught.value.field == "/chain/0/method"
    assert planned(recurrent, tmp_path, plain, method="model", steps=steps).results["draft"]
    assert planned(recurrent, tmp_path).results["draft"]


def test_a_block_draft_of_a_family_that_counts_layers_by_another_name(tiny_model: MakeModel, tmp_path: Path) -> None:
    config = json.loads((tiny_model("Bloom") / "config.json").read_text())
    assert "num_hidden_layers" not in config
    assert planned(tiny_model("Bloom"), tmp_path, method="block").results["draft"]
