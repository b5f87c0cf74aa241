"""Windows that every model holds, with something to learn in both parts of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.classifiers import MakeClassifier
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from fixtures.training import prepared, speaking
from safetensors.torch import save_file

from optcore.architecture import longest_sequence
from optcore.conductor import Conductor, Folder
from optcore.errors import DataError
from optcore.events import AnyEvent, Notice
from optcore.fetching import fetch_work
from optcore.preparation import prepare
from optcore.recipe import recipe_from
from optcore.streaming.decoder import Decoder
from optcore.techniques import Distill, Qat
from optcore.training.windows import Windows
from optcore.work import WorkFolder

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
SAID = "return x + 1 " * 60


class TestLength:
    @pytest.mark.parametrize(("family", "longest"), [("Bert", 512), ("Roberta", 510), ("Llama", 512)])
    def test_is_what_the_streaming_model_holds(self, family: str, longest: int, tiny_model: MakeModel) -> None:
        folder = tiny_model(family)
        assert longest_sequence(folder) == Decoder(folder).longest_sequence == longest

    def test_padding_may_be_token_0(self, tiny_classifier: MakeClassifier) -> None:
        folder = tiny_classifier("Roberta")
        assert longest_sequence(folder) == 39
        decoder = Decoder(folder)
        decoder.embed(torch.full((1, 39), 7))

    @pytest.mark.parametrize("name", ["max_position_embeddings", "n_positions", "max_seq_len"])
    def test_goes_by_several_names(self, name: str, tmp_path: Path) -> None:
        save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gptj", name: 77}))
        assert longest_sequence(tmp_path) == 77

    @pytest.mark.timeout(300)
    def test_windows_fit_the_teacher_too(self, tiny_model: MakeModel, tmp_path: Path) -> None:
        """A teacher of another entry may be shorter."""
        teacher = {"teacher": {"path": str(tiny_model("Roberta"))}}
        distill = {"technique": "distill", "sequence_length": 1024, "steps": 4, "batch": 2, **teacher}
        document = {
            "model": {"path": str(tiny_model("Bert"))},
            "calibration": {"dataset": "python-stdlib", "samples": 2, "sequence_length": 32},
            "chain": [distill],
            "target": {"format": "dense"},
        }
        recipe = recipe_from(document)
        events: list[AnyEvent] = []
        conductor = Conductor(WorkFolder(tmp_path), events.append)
        conductor.move(calibration=recipe.calibration)
        fetched = conductor.stage("0-fetch", fetch_work(recipe)).results
        fetched["models"]["/chain/1/teacher"] = {"longest_sequence": 8}
        source = Folder(fetched["source"], fetched["source_digest"])
        conductor.move(source=source.path, source_digest=source.digest)
        technique = recipe.chain[0]
        assert isinstance(technique, Distill)
        prepare(conductor, "1-distill", "/chain/0", technique, source)
        windows = Windows(Path(conductor.inputs.windows))
        assert windows.facts.length == 510
        Decoder(tiny_model("Roberta")).embed(windows.read([0]).tokens_BT)
        said = "sequence_length cut to 510, the most that the models hold"
        assert said in conductor.notices
        assert [event.message for event in events if isinstance(event, Notice)].count(said) == 1


class TestLearned:
    @pytest.fixture
    def chat_model(self, stdlib_model: Path, tmp_path: Path) -> Path:
        return speaking(stdlib_model, tmp_path / "chat", TEMPLATE)

    def _prepare(self, model: Path, folder: Path, *turns: tuple[str, str]) -> Any:
        file = folder / "chat.jsonl"
        file.write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}))
        technique = Qat.model_validate(
            {
                "steps": 40,
                "batch": 1,
                "sequence_length": 32,
                "validation": {"samples": 2},
                "data": {"kind": "chat", "path": str(file)},
            }
        )
        return prepared(run_of(model, model, folder / "out"), technique, folder / "windows", (file,))

    def test_nothing_to_measure_on_is_said(self, chat_model: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no token of the windows to measure progress on"):
            self._prepare(chat_model, tmp_path, ("user", "go"), ("assistant", SAID), ("user", SAID))

    def test_nothing_to_train_on_is_said(self, chat_model: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no token of the windows to train on"):
            self._prepare(chat_model, tmp_path, ("user", 10 * SAID), ("assistant", SAID[:100]))

    def test_something_in_both_is_enough(self, chat_model: Path, tmp_path: Path) -> None:
        facts = self._prepare(
            chat_model, tmp_path, ("user", "go"), ("assistant", SAID), ("user", SAID), ("assistant", SAID)
        )
        assert 0 < facts.learned < facts.tokens
