"""Documents share windows only where the model itself keeps them apart."""

import json
from pathlib import Path

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from fixtures.training import STDLIB, prepared

from optcore.calibration.text import Texts
from optcore.streaming.decoder import Decoder
from optcore.techniques import Qat
from optcore.training.isolation import keeps_documents_apart
from optcore.training.windows import Windows


@torch.no_grad()
def _leak(folder: Path) -> float:
    """How far a document's logits are, behind another one, from those that it has alone; relative."""
    generator = torch.Generator().manual_seed(2)
    first, second = (torch.randint(3, 2000, (1, size), generator=generator) for size in (9, 14))
    positions = torch.cat((torch.arange(9), torch.arange(14)))[None]
    model = Decoder(folder).load_all()
    together = model(input_ids=torch.cat((first, second), 1), position_ids=positions, use_cache=False).logits[:, 9:]
    alone = model(input_ids=second, use_cache=False).logits
    return float((together - alone).norm() / alone.norm())


@pytest.mark.parametrize(
    ("family", "is_apart"),
    [
        ("Llama", True),
        ("Gemma2", True),
        ("Qwen3Moe", True),
        ("DeepseekV3", True),
        ("NemotronH", True),  # of attention and experts alone
        ("Qwen3Next", False),  # a gated delta rule
        ("Lfm2", False),  # short convolutions
        ("OPT", False),  # its mask is not made of positions
        ("Bloom", False),  # it takes no positions
        ("GptOss", False),
    ],
)
def test_what_is_found_is_what_a_packed_window_does(family: str, is_apart: bool, tiny_model: MakeModel) -> None:
    folder = tiny_model(family)
    leak = _leak(folder)
    print(f"{family}: {leak:.1e}")
    assert (leak < 1e-5) is is_apart
    assert keeps_documents_apart(folder) is is_apart


def test_a_recurrent_model_is_given_the_text_as_it_comes(tiny_model: MakeModel, tmp_path: Path) -> None:
    folder = tiny_model("Qwen3Next")
    run = run_of(folder, folder, tmp_path / "out")
    technique = Qat.model_validate({"steps": 4, "batch": 2, "sequence_length": 32, "validation": {"samples": 2}})
    prepared(run, technique, tmp_path / "windows")
    expected = Texts(folder, STDLIB.model_copy(update={"sequence_length": 32, "samples": 10}), ())
    found = Windows(tmp_path / "windows").read(range(10))
    assert torch.equal(found.tokens_BT, expected.calibration_windows(512))
    assert not bool((found.positions_BT[:, 1:] == 0).any())


def test_the_notice_says_so(tiny_model: MakeModel, tmp_path: Path) -> None:
    from optcore.stage import DataWork
    from optcore.training.prepare import prepare_windows

    said = {}
    for family in ("Llama", "Lfm2"):
        run = run_of(tiny_model(family), tiny_model(family), tmp_path / family, calibration=STDLIB)
        prepare_windows(run, DataWork(data=Qat().data, sequence_length=32, training=2, validation=1))
        said[family] = json.dumps(run.results.get("notices", []))
    assert "would not be apart" in said["Lfm2"]
    assert said["Llama"] == "[]"
