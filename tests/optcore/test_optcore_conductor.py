"""When a stage is taken as done: its files are all there, and what computes it is what computed it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures.hub import HubPeer
from fixtures.tiny_models import MakeModel

from optcore.engine import fetch
from optcore.events import AnyEvent, StageFinished
from optcore.recipe import Recipe, recipe_from
from optcore.stage import TechniqueWork, environment
from optcore.techniques import Distill, Finetune, Heal, Ptq, Qad, Qat
from optcore.version import installed


def _lines(word: str) -> str:
    return "".join(json.dumps({"text": f"{word} {n} " * 200}) + "\n" for n in range(20))


def _fetched(recipe: Recipe, work: Path) -> tuple[Recipe, bool]:
    events: list[AnyEvent] = []
    pinned = fetch(recipe, work, events.append)
    (finished,) = (event for event in events if isinstance(event, StageFinished))
    return pinned, finished.cached


@pytest.mark.timeout(300)
def test_a_pinned_fetch_is_done_only_while_all_of_it_is_there(
    hub: HubPeer, tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    for name in ("model", "teacher"):
        hub.put_folder(f"me/{name}", tiny_model("Llama"))
    for name in ("calibration", "training"):
        hub.put(f"me/{name}", {"train.jsonl": _lines(name)}, kind="datasets")
    document = {
        "model": {"id": "me/model"},
        "calibration": {"dataset": "me/calibration", "samples": 2, "sequence_length": 32},
        "chain": [{"technique": "distill", "teacher": {"id": "me/teacher"}, "data": {"dataset": "me/training"}}],
        "target": {"format": "dense"},
        "evaluate": [],
    }
    pinned, _ = _fetched(recipe_from(document), tmp_path)
    assert _fetched(pinned, tmp_path) == (pinned, True)
    sources = tmp_path / "sources"
    for gone in ("calibration", "training", "teacher"):
        (place,) = (path for path in sources.rglob("*") if path.is_dir() and path.name.endswith(gone))
        shutil.rmtree(place)
        assert _fetched(pinned, tmp_path) == (pinned, False), gone
        assert place.is_dir()


@pytest.mark.parametrize(
    ("technique", "depends"),
    [
        (Qad(scope="lora"), True),
        (Qat(scope="lora"), True),
        (Finetune(scope="lora"), True),
        (Distill(scope="lora"), True),
        (Heal(), True),
        (Heal(adapters=False), False),
        (Finetune(), False),
        (Qad(scope="block"), False),
        (Ptq(scheme="int8"), False),
    ],
)
def test_what_trains_adapters_depends_on_the_library_that_makes_them(technique: Any, depends: bool) -> None:
    found = environment(TechniqueWork(technique=technique))
    assert found.get("peft") == (installed("peft") if depends else None)
    assert found["torch"] == installed("torch")
