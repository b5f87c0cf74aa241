"""Windows of text: begun as the model's own tokenizer begins a text, checked before anything is computed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from optcore.calibration.text import Frame, Texts, frame_of
from optcore.errors import BadCheckpoint, DataError
from optcore.references import Calibration

BUILT_IN = Calibration(dataset="python-stdlib", samples=6, sequence_length=32)
START, END = 5, 6


@pytest.fixture
def folder(stdlib_model: Path, tmp_path: Path) -> Path:
    """The shipped model's tokenizer and config, to be changed."""
    model = tmp_path / "model"
    model.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(stdlib_model / name, model / name)
    return model


def test_the_shipped_tokenizer_puts_nothing_before_a_text(folder: Path) -> None:
    assert Texts(folder, BUILT_IN, ()).frame == Frame()


def test_windows_begin_with_bos_where_the_tokenizer_puts_one(folder: Path) -> None:
    plain = Texts(folder, BUILT_IN, ()).calibration_windows(1024)
    _frame(folder, "$ $A")
    texts = Texts(folder, BUILT_IN, ())
    windows = texts.calibration_windows(1024)
    assert windows.shape == (6, 32)
    assert windows[:, 0].tolist() == [START] * 6
    assert torch.equal(windows[:, 1:].flatten(), plain.flatten()[: 6 * 31])  # disjoint, and no token is lost
    assert texts.evaluation_windows(3, 16, 1024)[:, 0].tolist() == [START] * 3


def test_an_end_is_kept_for_encoders_alone(folder: Path) -> None:
    _frame(folder, "$ $A %")
    decoder = AutoTokenizer.from_pretrained(folder)
    assert frame_of(decoder) == Frame((START,))
    decoder.cls_token, decoder.sep_token = decoder.convert_ids_to_tokens([START, END])
    assert frame_of(decoder) == Frame((START,), (END,))


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    with pytest.raises(BadCheckpoint, match=r"gives token \d+, but the model has embeddings for 100"):
        Texts(folder, BUILT_IN, ()).check(1024)


def test_enough_text_passes(folder: Path) -> None:
    Texts(folder, BUILT_IN, ()).check(1024, [64])
    assert len(Texts(folder, BUILT_IN, ()).evaluation_windows(2, 64, 1024)) == 2


@pytest.mark.parametrize(
    ("text", "use"),
    [("few words", "calibration"), ("words and words " * 700, "evaluation")],
    ids=["calibration", "evaluation"],
)
def test_too_little_text_says_what_for(text: str, use: str, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(text)
    calibration = Calibration(path=str(file), samples=4, sequence_length=32)
    with pytest.raises(DataError, match=f"left for {use}"):
        Texts(folder, calibration, (file,)).check(1024, [32])


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_an_empty_calibration_set_is_a_typed_error(content: str, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "empty.txt"
    file.write_text(content)
    with pytest.raises(DataError, match="no text"):
        Texts(folder, Calibration(path=str(file)), (file,)).check(1024)


@pytest.mark.parametrize("content", ["{}", "[]", "garbage", '{"version": "1.0", "added_tokens": [], "model": {}}'])
def test_a_damaged_tokenizer_is_a_bad_checkpoint(content: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(BadCheckpoint, match="cannot load the tokenizer"):
        Texts(folder, BUILT_IN, ())


def _frame(folder: Path, template: str) -> None:
    """Let the tokenizer put tokens around a text: `$` stands for its start, `%` for its end."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    start, end = tokenizer.convert_ids_to_tokens([START, END])
    single = [{"$": start, "$A": "$A", "%": end}[part] for part in template.split()]
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(single=single, pair=None, special_tokens=[(start, START), (end, END)])
    backend.save(str(folder / "tokenizer.json"))
