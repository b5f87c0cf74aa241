"""What a draft's stage reads is made of the very model that it drafts for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import Quantize, run_of
from fixtures.training import STDLIB, prepared

from optcore.conductor import Conductor, Folder
from optcore.errors import DataError
from optcore.events import AnyEvent
from optcore.preparation import prepare
from optcore.references import Calibration
from optcore.stage import Inputs, StageRecord
from optcore.techniques import Draft
from optcore.work import WorkFolder

torch.set_num_threads(1)
WRITTEN = {"kind": "generated", "prompt_tokens": 4, "temperature": 0}


def draft(**more: object) -> Draft:
    settings = {"steps": 2, "batch": 2, "sequence_length": 24, "validation": {"samples": 2}, "data": WRITTEN}
    return Draft.model_validate({**settings, **more})


def conductor(work: Path, source: Path, events: list[AnyEvent]) -> Conductor:
    """Behind a fetch that brought the source alone."""
    fetched: dict[str, Any] = {"texts": {}, "models": {}, "drafts": {}, "longest_sequence": 1024}
    record = StageRecord(name="0-fetch", key="fetched", seconds=0, peak_memory_bytes=0, results=fetched)
    at_source = Folder(str(source), "source")
    inputs = Inputs(
        source=at_source.path,
        source_digest=at_source.digest,
        checkpoint=at_source.path,
        checkpoint_digest=at_source.digest,
        calibration=STDLIB,
    )
    return Conductor(WorkFolder(work), events.append, inputs, {"0-fetch": record})


def test_its_windows_are_written_by_the_model_that_it_drafts_for(
    stdlib_model: Path, quantized: Quantize, tmp_path: Path
) -> None:
    technique, target = draft(), quantized("int2")
    dense = Folder(str(stdlib_model), "source")
    with_draft = conductor(tmp_path / "work", stdlib_model, [])
    with_draft.enter(Folder(str(target), "quantized"))
    prepare(with_draft, "2-draft", "/chain/1", technique, dense)
    windows = Path(with_draft.inputs.windows)
    assert windows.parent.name == with_draft.inputs.windows_digest == with_draft.records["2-draft-data"].key
    assert with_draft.checkpoint == Folder(str(target), "quantized"), "the draft's stage reads the target"
    assert not with_draft.inputs.teacher

    expected = run_of(stdlib_model, stdlib_model, tmp_path / "expected", calibration=STDLIB)
    expected.teacher = target
    prepared(expected, technique, tmp_path / "windows")
    assert (windows / "tokens.bin").read_bytes() == (tmp_path / "windows" / "tokens.bin").read_bytes()
    assert windows.joinpath("tokens.bin").stat().st_size == 4 * 24 * (technique.windows + 2)


def test_text_too_short_for_prompts_is_said(stdlib_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("return None\n")
    run = run_of(stdlib_model, stdlib_model, tmp_path / "out")
    run.teacher = stdlib_model
    own = {**WRITTEN, "prompt_tokens": 64, "path": str(text)}
    with pytest.raises(DataError, match="the training data fills 0 windows") as caught:
        prepared(run, draft(data=own), tmp_path / "windows", (text,), Calibration(dataset="python-stdlib", samples=1))
    assert caught.value.field == "/chain"
