"""Prompts that a target answers anew: its own words behind the very tokens that it was asked, by the seed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import Quantize, run_of
from fixtures.tiny_models import MakeModel
from fixtures.training import STDLIB, Killed, speaking
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from optcore.calibration.chat import ChatFormat
from optcore.calibration.text import Texts
from optcore.errors import DataError
from optcore.events import AnyEvent, Progress
from optcore.speculative.target import Target
from optcore.stage import DataWork
from optcore.techniques.data import TrainingData
from optcore.training import written_answers
from optcore.training.answering import Question, answered
from optcore.training.packing import Document, alone, packed_whole
from optcore.training.prepare import prepare_windows
from optcore.training.turns import Talk, conversation
from optcore.training.windows import Batch, Windows

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FORGETFUL = TEMPLATE.replace(
    "{{ m['content'] }}", "{{ m['content'] if loop.last or m['role'] != 'assistant' else '' }}"
)
NOBODY: frozenset[int] = frozenset()


def _questions(temperature: float) -> list[Question]:
    prompts = [[3, 4], list(range(50, 90)), list(range(7, 16))]
    limits = [9, 3, 20]
    generators = [torch.Generator().manual_seed(number) for number in range(3)]
    return [Question(*one, temperature, own) for *one, own in zip(prompts, limits, generators, strict=True)]


def _prepare(
    model: Path, folder: Path, data: dict[str, Any], *, length: int = 48, seed: int = 0, kill_at: int = 0, **more: Any
) -> Windows:
    """Windows as the data stage makes them; in the same folder it goes on where it was killed."""

    def emit(event: AnyEvent) -> None:
        if isinstance(event, Progress) and event.done == kill_at > 0:
            raise Killed

    run = run_of(model, model, folder, calibration=STDLIB)
    run.emit, run.seed, run.teacher = emit, seed, more.get("teacher")
    if "path" in data:
        run.text_files = (Path(data["path"]),)
    work = DataWork(
        data=TrainingData.model_validate({"kind": "answers", **data}), sequence_length=length, training=6, validation=2
    )
    prepare_windows(run, work)
    return Windows(folder)


def _conversations(folder: Path, *talks: list[str]) -> str:
    """A file of conversations between a user and somebody whose words nobody is to learn."""
    roles = ["user", "assistant"] * 4
    records = [
        {"messages": [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]}
        for said in talks
    ]
    path = folder / "talks.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def _all(windows: Windows) -> Batch:
    return windows.read(range(windows.facts.windows))


class TestAnswering:
    @pytest.mark.parametrize("family", ["Llama", "Gemma3Text", "OPT", "Bloom", "Lfm2", "DeepseekV3"])
    def test_answers_written_together_are_those_written_alone(self, tiny_model: MakeModel, family: str) -> None:
        model = Target(tiny_model(family)).model
        for temperature in (0.0, 1.0):
            together = answered(model, _questions(temperature), frozenset({0}))
            alone_each = [answered(model, [one], frozenset({0}))[0] for one in _questions(temperature)]
            assert together == alone_each
            assert [len(answer) for answer in together] == [9, 3, 20]

    def test_the_likeliest_answers_are_those_of_transformers(self, stdlib_model: Path) -> None:
        text = Texts(stdlib_model, STDLIB, ()).tokenizer("import os\n\n\ndef main(", add_special_tokens=False).input_ids
        question = Question(text, 24, 0.0, torch.Generator())
        own = answered(Target(stdlib_model).model, [question], NOBODY)[0]
        theirs = AutoModelForCausalLM.from_pretrained(stdlib_model, dtype=torch.float32).generate(
            torch.tensor([text]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert own == theirs[0, len(text) :].tolist()

    def test_an_answer_ends_with_any_token_that_ends_one(self, stdlib_model: Path) -> None:
        model, questions = Target(stdlib_model).model, _questions(1.0)
        whole = answered(model, questions, NOBODY)
        end = whole[2][7]
        cut = answered(model, _questions(1.0), frozenset({end}))
        assert cut[2] == whole[2][: whole[2].index(end) + 1]

    def test_tokens_are_drawn_as_often_as_they_are_likely(self, stdlib_model: Path) -> None:
        target, prompt, draws = Target(stdlib_model), [30, 31], 2000
        questions = [Question(prompt, 1, 0.7, torch.Generator().manual_seed(seed)) for seed in range(draws)]
        drawn = torch.tensor(answered(target.model, questions, NOBODY)).flatten()
        hidden = target.look({"input_ids": torch.tensor([prompt])}).hidden_BTH[0, -1]
        likely = (target.logits(hidden) / 0.7).softmax(-1).topk(8)
        for token, share in zip(likely.indices.tolist(), likely.values.tolist(), strict=True):
            error = (share * (1 - share) / draws) ** 0.5
            assert abs(float((drawn == token).float().mean()) - share) < 4 * error

    def test_a_quantized_target_answers_as_it_will_compute(self, quantized: Quantize) -> None:
        """Every token is the likeliest one of a pass over the whole text, with rounded weights, inputs and cache."""
        target = Target(quantized("nvfp4", kv_cache="fp8"))
        prompt = list(range(100, 120))
        answer = answered(target.model, [Question(prompt, 12, 0.0, torch.Generator())], NOBODY)[0]
        hidden_BTH = target.look({"input_ids": torch.tensor([prompt + answer])}).hidden_BTH
        assert target.logits(hidden_BTH)[0, len(prompt) - 1 : -1].argmax(-1).tolist() == answer


class TestTurns:
    def test_the_model_s_own_answers_take_the_place_of_others(self, stdlib_model: Path, tmp_path: Path) -> None:
        document = self._talked(speaking(stdlib_model, tmp_path / "chat", TEMPLATE))
        assert len(document) == 1
        learned = [token for token, own in zip(document[0].ids, document[0].learned or [], strict=True) if own]
        assert learned == [11, 12, 0, 13, 14, 0]

    def test_turns_that_a_template_rewrites_are_documents_of_their_own(
        self, stdlib_model: Path, tmp_path: Path
    ) -> None:
        documents = self._talked(speaking(stdlib_model, tmp_path / "chat", FORGETFUL))
        assert [document.ids[-3:] for document in documents] == [[11, 12, 0], [13, 14, 0]]

    @staticmethod
    def _talked(model: Path) -> list[Document]:
        tokenizer = Texts(model, STDLIB, ()).tokenizer
        messages = [
            {"role": role, "content": content}
            for role, content in (("assistant", "hi"), ("user", "one"), ("assistant", "not this"), ("user", "two"))
        ]
        turns = conversation(ChatFormat(tokenizer), tokenizer, messages, frozenset({0}))
        talk = Talk(turns, 200, torch.Generator(), 0.0)
        for answer in ([11, 12, 0], [13, 14, 0]):
            assert talk.prompt
            assert "not this" not in tokenizer.decode(talk.prompt)
            talk.go_on(answer)
        assert talk.prompt is None
        return talk.documents


class TestWindows:
    def test_conversations_are_packed_whole(self) -> None:
        documents = [Document([10, 11], [False, True]), Document([20, 21, 22]), Document([30])]
        batches = list(packed_whole(documents, (1,), 6, 9))
        assert [batch.tokens_BT[0].tolist() for batch in batches] == [[1, 10, 11, 9, 9, 9], [1, 20, 21, 22, 1, 30]]
        assert batches[0].predicts_BT.int().tolist() == [[0, 1, 0, 0, 0, 0]]
        assert batches[1].positions_BT.tolist() == [[0, 1, 2, 3, 0, 1]]

    def test_a_window_each_where_a_model_cannot_keep_two_apart(self) -> None:
        (batch,) = alone([Document([10, 11], [False, True])], (1,), 6, 9)
        assert batch.tokens_BT.tolist() == [[1, 10, 11, 9, 9, 9]]
        assert batch.predicts_BT.int().tolist() == [[0, 1, 0, 0, 0, 0]]
        assert batch.positions_BT.tolist() == [list(range(6))]

    @pytest.mark.parametrize("packing", [True, False])
    def test_all_that_is_learned_is_the_target_s_own_words(
        self, stdlib_model: Path, tmp_path: Path, packing: bool
    ) -> None:
        windows = _prepare(stdlib_model, tmp_path / "w", {"greedy_share": 1, "new_tokens": 9, "packing": packing})
        self._check_greedy(Target(stdlib_model), _all(windows))

    def test_conversations_in_a_quantized_target_s_words(
        self, stdlib_model: Path, quantized: Quantize, tmp_path: Path
    ) -> None:
        model = speaking(stdlib_model, tmp_path / "chat", TEMPLATE)
        path = _conversations(tmp_path, *([f"def f{number}(", "no", "return"] for number in range(6)))
        data = {"path": path, "greedy_share": 1, "new_tokens": 8}
        windows = _prepare(model, tmp_path / "w", data, length=64, teacher=quantized("nvfp4", kv_cache="fp8"))
        self._check_greedy(Target(quantized("nvfp4", kv_cache="fp8")), _all(windows))

    @staticmethod
    def _check_greedy(target: Target, batch: Batch) -> None:
        from optcore.training.trainee import inputs_of

        said_BT = target.logits(target.look(inputs_of(batch)).hidden_BTH).argmax(-1)
        assert batch.predicts_BT.sum() > 40
        assert torch.equal(said_BT[batch.predicts_BT], batch.next_BT[batch.predicts_BT])

    def test_a_share_is_greedy_and_the_rest_depends_on_the_seed(self, stdlib_model: Path, tmp_path: Path) -> None:
        def tokens(name: str, seed: int) -> torch.Tensor:
            data = {"packing": False, "new_tokens": 12, "greedy_share": 0.5}
            return _all(_prepare(stdlib_model, tmp_path / name, data, seed=seed)).tokens_BT

        first, again, other = tokens("a", 0), tokens("b", 0), tokens("c", 1)
        assert torch.equal(first, again)
        assert torch.equal(first[1::2], other[1::2])
        assert not torch.equal(first[::2], other[::2])

    def test_a_killed_stage_answers_nothing_twice(
        self, stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[int] = []

        def counted(model: Any, questions: list[Question], ends: frozenset[int]) -> list[list[int]]:
            asked.append(len(questions))
            return answered(model, questions, ends)

        monkeypatch.setattr(written_answers, "answered", counted)
        monkeypatch.setattr(written_answers, "_BATCH_talks", 3)
        data = {"packing": False, "new_tokens": 5}
        whole = _prepare(stdlib_model, tmp_path / "whole", data)
        assert asked == [3, 3, 3]
        with pytest.raises(Killed):
            _prepare(stdlib_model, tmp_path / "killed", data, kill_at=5)
        assert asked == [3, 3, 3, 3, 3]
        again = _prepare(stdlib_model, tmp_path / "killed", data)
        assert asked == [3, 3, 3, 3, 3, 3]
        assert again.facts == whole.facts

    def test_generated_text_is_a_quantized_target_s_own(
        self, stdlib_model: Path, quantized: Quantize, tmp_path: Path
    ) -> None:
        data = {"kind": "generated", "temperature": 0, "prompt_tokens": 8}
        checkpoint = quantized("nvfp4", kv_cache="fp8")
        batch, target = _all(_prepare(stdlib_model, tmp_path / "w", data, teacher=checkpoint)), Target(checkpoint)
        said_BT = target.logits(target.look({"input_ids": batch.tokens_BT}).hidden_BTH).argmax(-1)
        assert torch.equal(said_BT[:, 7:-1], batch.tokens_BT[:, 8:])


class TestRefused:
    """Before the target is loaded: its folder is not even there."""

    def _refused(self, model: Path, folder: Path, match: str, **data: Any) -> None:
        with pytest.raises(DataError, match=match):
            _prepare(model, folder / "w", data, teacher=folder / "nowhere")

    def test_conversations_and_no_chat_template(self, stdlib_model: Path, tmp_path: Path) -> None:
        self._refused(stdlib_model, tmp_path, "no chat template", path=_conversations(tmp_path, ["a", "b"]))

    def test_no_user_says_anything(self, stdlib_model: Path, tmp_path: Path) -> None:
        model = speaking(stdlib_model, tmp_path / "chat", TEMPLATE)
        path = _conversations(tmp_path, [], ["", "b"])
        self._refused(model, tmp_path, "no conversation in which the user says something", path=path)

    def test_no_prompt_leaves_room(self, stdlib_model: Path, tmp_path: Path) -> None:
        model = speaking(stdlib_model, tmp_path / "chat", TEMPLATE)
        self._refused(model, tmp_path, "leaves room for an answer", path=_conversations(tmp_path, ["word " * 99, "b"]))
        self._refused(model, tmp_path, "leaves room for an answer", prompt_tokens=48)

    def test_an_encoder(self, tiny_model: MakeModel, tmp_path: Path) -> None:
        bert = tiny_model("Bert")
        with pytest.raises(DataError, match="an encoder cannot write text"):
            _prepare(bert, tmp_path / "w", {}, teacher=bert)

    @pytest.mark.parametrize(
        "data",
        [
            {"kind": "text", "new_tokens": 5},
            {"kind": "chat", "greedy_share": 1},
            {"kind": "answers", "prompt_tokens": 0},
        ],
    )
    def test_settings_of_another_kind(self, data: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match="answer"):
            TrainingData.model_validate(data)
