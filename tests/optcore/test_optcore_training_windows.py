"""What is trained on: documents in windows, conversations, random tokens, and what a model writes itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from fixtures.training import prepared, speaking
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from optcore.calibration.text import Texts
from optcore.errors import BadCheckpoint, DataError
from optcore.references import Calibration
from optcore.techniques import Qat
from optcore.training.packing import Document, packed
from optcore.training.trainee import inputs_of
from optcore.training.windows import BEGINS, LEARNED, TOKENS, Batch, Windows

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def _technique(**more: Any) -> Qat:
    return Qat.model_validate({"steps": 4, "batch": 2, "sequence_length": 32, "validation": {"samples": 2}, **more})


def _joined(batches: list[Batch]) -> Batch:
    return Batch(torch.cat([one.tokens_BT for one in batches]), torch.cat([one.flags_BT for one in batches]))


def _windows(model: Path, folder: Path, files: tuple[Path, ...] = (), seed: int = 0, **more: Any) -> Windows:
    run = run_of(model, model, folder / "out")
    run.teacher, run.seed = model, seed
    prepared(run, _technique(**more), folder / "windows", files)
    return Windows(folder / "windows")


class TestPacking:
    def test_documents_share_windows_and_go_on_in_the_next(self) -> None:
        documents = [Document([10, 11, 12]), Document([20, 21, 22, 23, 24, 25]), Document([30, 31, 32])]
        batch = _joined(list(packed(documents, (1,), 8, 0)))
        assert batch.tokens_BT.tolist() == [[1, 10, 11, 12, 1, 20, 21, 22], [1, 23, 24, 25, 1, 30, 31, 32]]
        assert batch.positions_BT.tolist() == [[0, 1, 2, 3] * 2] * 2
        assert batch.predicts_BT.int().tolist() == [[1, 1, 1, 0, 1, 1, 1, 0]] * 2
        assert batch.next_BT[0, :3].tolist() == [10, 11, 12]

    def test_without_a_beginning_the_first_token_is_not_predicted(self) -> None:
        batch = _joined(list(packed([Document([10, 11, 12]), Document([20, 21])], (), 5, 0)))
        assert batch.predicts_BT.int().tolist() == [[1, 1, 0, 1, 0]]

    def test_room_too_small_for_a_block_is_filled_and_not_learned(self) -> None:
        batch = _joined(list(packed([Document([10, 11]), Document([20, 21, 22])], (1,), 4, 7)))
        assert batch.tokens_BT.tolist() == [[1, 10, 11, 7], [1, 20, 21, 22]]
        assert batch.predicts_BT.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]

    def test_only_marked_tokens_are_learned(self) -> None:
        document = Document([10, 11, 12, 13], [False, False, True, True])
        batch = _joined(list(packed([document], (1,), 5, 0)))
        assert batch.predicts_BT.int().tolist() == [[0, 0, 1, 1, 0]]

    @pytest.mark.parametrize("family", ["Llama", "Mistral", "Gemma2", "Qwen3Moe", "GPTNeoX"])
    @torch.no_grad()
    def test_a_packed_document_is_predicted_as_if_it_were_alone(self, family: str, tiny_model: MakeModel) -> None:
        """In one window with others, and at their positions, it must see none of them."""
        from optcore.training.student import Student

        generator = torch.Generator().manual_seed(2)
        texts = [torch.randint(3, 2000, (size,), generator=generator).tolist() for size in (9, 14, 22)]
        batch = _joined(list(packed([Document(ids) for ids in texts], (1,), 48, 0)))
        model = Student(tiny_model(family)).model
        together = model(**inputs_of(batch), use_cache=False).logits[0]
        start = 0
        for ids in texts:
            alone = model(input_ids=torch.tensor([[1, *ids]]), use_cache=False).logits[0]
            torch.testing.assert_close(together[start : start + len(alone)], alone, rtol=1e-4, atol=1e-4)
            start += len(alone)


class TestText:
    def test_windows_of_the_recipe_s_own_text(self, stdlib_model: Path, tmp_path: Path) -> None:
        windows = _windows(stdlib_model, tmp_path)
        facts = windows.facts
        assert (facts.windows, facts.validation, facts.training, facts.length) == (10, 2, 8, 32)
        everything = windows.read(range(10))
        assert facts.learned == int(everything.predicts_BT.sum()) == 310
        assert bool((everything.flags_BT[:, 0] & BEGINS).all())
        again = _windows(stdlib_model, tmp_path / "again")
        assert again.facts == facts

    def test_no_window_holds_text_that_is_evaluated(self, stdlib_model: Path, tmp_path: Path) -> None:
        """Words that occur once each tell where every token comes from."""
        file = tmp_path / "words.jsonl"
        file.write_text("\n".join(json.dumps({"text": " ".join(f"w{n}x{i}" for i in range(300))}) for n in range(30)))
        calibration = Calibration(path=str(file), dataset="", samples=2, sequence_length=64)
        run = run_of(stdlib_model, stdlib_model, tmp_path / "out", calibration=calibration)
        prepared(run, _technique(steps=500), tmp_path / "windows", (file,), calibration)
        windows = Windows(tmp_path / "windows")
        trained = windows.read(range(windows.facts.windows)).tokens_BT
        texts = Texts(stdlib_model, calibration, (file,))
        held_out = texts.evaluation_windows(1000, 16, 512)
        seen = {tuple(row[i : i + 16]) for row in trained.tolist() for i in range(len(row) - 15)}
        assert len(held_out) > 100
        assert not seen & {tuple(row) for row in held_out.tolist()}

    def test_own_text_is_used_whole(self, stdlib_model: Path, tmp_path: Path) -> None:
        file = tmp_path / "own.txt"
        file.write_text("def f(x):\n    return x + 1\n" * 400)
        windows = _windows(stdlib_model, tmp_path, (file,), data={"path": str(file)}, steps=1000)
        tokens = Texts(stdlib_model, Calibration(path=str(file)), (file,)).training_documents(whole=True)
        assert windows.facts.windows == sum(len(ids) for ids in tokens) // 32

    def test_unpacked_windows_are_pieces_of_the_text_as_it_comes(self, stdlib_model: Path, tmp_path: Path) -> None:
        windows = _windows(stdlib_model, tmp_path, data={"packing": False})
        expected = Texts(stdlib_model, Calibration(dataset="python-stdlib", sequence_length=32), ())
        ids = expected.calibration_windows(512)[:10]
        assert torch.equal(windows.read(range(10)).tokens_BT, ids)

    @pytest.mark.parametrize(
        ("content", "said"),
        [("", "no text"), ("x = 1\n", "fills 0 windows")],
        ids=["empty", "too short"],
    )
    def test_too_little_text_is_said(self, content: str, said: str, stdlib_model: Path, tmp_path: Path) -> None:
        file = tmp_path / "little.txt"
        file.write_text(content)
        with pytest.raises(DataError, match=said):
            _windows(stdlib_model, tmp_path, (file,), data={"path": str(file)})

    def test_cut_files_are_said(self, stdlib_model: Path, tmp_path: Path) -> None:
        windows = _windows(stdlib_model, tmp_path)
        with (windows.folder / TOKENS).open("ab") as file:
            file.truncate(100)
        with pytest.raises(BadCheckpoint, match="other windows"):
            Windows(windows.folder)


class TestChat:
    @pytest.fixture
    def chat_model(self, stdlib_model: Path, tmp_path: Path) -> Path:
        return speaking(stdlib_model, tmp_path / "chat", CHAT_TEMPLATE)

    @pytest.mark.parametrize("form", ["messages", "sharegpt"])
    def test_only_answers_are_learned(self, chat_model: Path, tmp_path: Path, form: str) -> None:
        turns = [("user", "add one"), ("assistant", "return x + 1"), ("user", "again"), ("assistant", "return x + 2")]
        names = {"user": "human", "assistant": "gpt"}
        if form == "messages":
            record: dict[str, Any] = {"messages": [{"role": role, "content": text} for role, text in turns]}
        else:
            record = {"conversations": [{"from": names[role], "value": text} for role, text in turns]}
        file = tmp_path / "chat.jsonl"
        file.write_text("\n".join([json.dumps(record)] * 40))
        windows = _windows(chat_model, tmp_path, (file,), data={"kind": "chat", "path": str(file)}, sequence_length=64)
        batch = windows.read([0])
        tokenizer = Texts(chat_model, Calibration(path=str(file)), (file,)).tokenizer
        learned = (batch.flags_BT[0] & LEARNED).bool()
        text = tokenizer.decode(batch.tokens_BT[0][learned])
        assert text.startswith("return x + 1</s><return x + 2</s>")  # the tokenizer knows "><" as one token
        assert "user" not in text
        assert "again" not in text

    @pytest.mark.parametrize("packing", [True, False])
    def test_what_begins_a_text_is_there_once(self, chat_model: Path, tmp_path: Path, packing: bool) -> None:
        """Templates write BOS that the tokenizer puts before a text too (Llama 3, Gemma, Mistral)."""
        tokenizer = AutoTokenizer.from_pretrained(chat_model)
        start, backend = tokenizer.bos_token, tokenizer.backend_tokenizer
        framed = TemplateProcessing(single=f"{start} $A", special_tokens=[(start, tokenizer.bos_token_id)])
        backend.post_processor = framed
        (chat_model / "tokenizer.json").unlink()
        backend.save(str(chat_model / "tokenizer.json"))
        (chat_model / "chat_template.jinja").unlink()
        (chat_model / "chat_template.jinja").write_text("{{ bos_token }}" + CHAT_TEMPLATE)
        said = [{"role": "user", "content": "add one"}, {"role": "assistant", "content": "return x + 1"}]
        file = tmp_path / "chat.jsonl"
        file.write_text("\n".join([json.dumps({"messages": said})] * 80))
        data = {"kind": "chat", "path": str(file), "packing": packing}
        batch = _windows(chat_model, tmp_path, (file,), data=data, sequence_length=64).read([0])
        given = AutoTokenizer.from_pretrained(chat_model).apply_chat_template(said, return_dict=False)
        assert given.count(tokenizer.bos_token_id) == 1
        assert batch.tokens_BT[0, : len(given)].tolist() == given
        starts = (batch.tokens_BT[0] == tokenizer.bos_token_id).nonzero().flatten().tolist()
        assert starts == (list(range(0, 64, len(given))) if packing else [0])
        learned = (batch.flags_BT[0] & LEARNED).bool()
        assert "add one" not in tokenizer.decode(batch.tokens_BT[0][learned])
        assert "return x + 1" in tokenizer.decode(batch.tokens_BT[0][learned])

    def test_no_chat_template(self, stdlib_model: Path, tmp_path: Path) -> None:
        file = tmp_path / "chat.jsonl"
        file.write_text(json.dumps({"messages": [{"role": "assistant", "content": "hello"}]}))
        with pytest.raises(DataError, match="no chat template"):
            _windows(stdlib_model, tmp_path, (file,), data={"kind": "chat", "path": str(file)})

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ({"text": "hello"}, "no column of conversations"),
            ({"messages": "hello"}, "holds str"),
            ({"messages": ["hello"]}, "a message is an object"),
            ({"messages": [{"role": "assistant"}]}, "no `role` and `content`"),
            ({"messages": [{"role": "user", "content": "hello"}]}, "no conversation"),
        ],
    )
    def test_what_is_no_conversation_is_said(
        self, chat_model: Path, tmp_path: Path, line: dict[str, Any], said: str
    ) -> None:
        file = tmp_path / "chat.jsonl"
        file.write_text(json.dumps(line))
        with pytest.raises(DataError, match=said):
            _windows(chat_model, tmp_path, (file,), data={"kind": "chat", "path": str(file)})


class TestWithoutText:
    def test_random_tokens_cover_the_vocabulary(self, stdlib_model: Path, tmp_path: Path) -> None:
        windows = _windows(stdlib_model, tmp_path, data={"kind": "random"}, steps=200)
        tokens = windows.read(range(windows.facts.windows)).tokens_BT
        assert windows.facts.windows == 402
        assert int(tokens.max()) < 2048
        assert len(tokens.unique()) > 2000
        assert (
            windows.facts.sha256
            == _windows(stdlib_model, tmp_path / "a", data={"kind": "random"}, steps=200).facts.sha256
        )
        other = _windows(stdlib_model, tmp_path / "b", seed=1, data={"kind": "random"}, steps=200)
        assert windows.facts.sha256 != other.facts.sha256

    def test_generated_text_is_what_the_model_itself_finds_likely(self, stdlib_model: Path, tmp_path: Path) -> None:
        from optcore.training.student import Student

        windows = _windows(stdlib_model, tmp_path, data={"kind": "generated", "temperature": 0, "prompt_tokens": 8})
        batch = windows.read(range(windows.facts.windows))
        with torch.no_grad():
            logits = Student(stdlib_model).model(input_ids=batch.tokens_BT, use_cache=False).logits
        assert torch.equal(logits[:, 7:-1].argmax(-1), batch.tokens_BT[:, 8:])
        own_words = Texts(stdlib_model, Calibration(dataset="python-stdlib"), ()).training_documents(whole=True)
        first = next(own_words)
        assert batch.tokens_BT[0, :8].tolist() == first[:8]

    def test_generated_text_is_drawn_alike_from_one_seed(self, stdlib_model: Path, tmp_path: Path) -> None:
        def generate(name: str, seed: int) -> Windows:
            data = {"kind": "generated", "prompt_tokens": 0}
            return _windows(stdlib_model, tmp_path / name, seed=seed, data=data)

        first, second, other = generate("a", 0), generate("b", 0), generate("c", 1)
        assert first.facts == second.facts
        assert first.facts.sha256 != other.facts.sha256
