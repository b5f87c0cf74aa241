"""What a layer takes to quantize is reckoned from shapes, and said when it does not fit."""

from pathlib import Path

import pytest
import torch
from fixtures.exporting import plain, run_of
from fixtures.tiny_models import MakeModel

from optcore.calibration.layer import LayerQuantizer
from optcore.calibration.memory import largest_need
from optcore.errors import OutOfMemory
from optcore.streaming.decoder import Decoder
from optcore.streaming.free_memory import check_room


def test_a_llamas_need_is_the_formulas(tiny_model: MakeModel) -> None:
    decoder = Decoder(tiny_model("Llama"), dtype=torch.bfloat16)
    config = decoder.model.config
    d, f = config.hidden_size, config.intermediate_size
    need = largest_need(decoder, gram=True)
    assert need.grams == 4 * (
        2 * d**2 + f**2
    )  # queries and the output projection are as wide: one of three is not seen
    assert need.working == 4 * d * f
    assert need.block == 2 * sum(parameter.numel() for parameter in decoder.layers[0].parameters())
    assert largest_need(decoder, gram=False).total == need.total - need.grams


def test_what_does_not_fit_is_refused_with_its_parts(tiny_model: MakeModel) -> None:
    need = largest_need(Decoder(tiny_model("Llama")), gram=True)
    check_room("quantizing", need.total, 2.0 * need.total, str(need), "none")
    with pytest.raises(OutOfMemory, match=r"takes about .* are free: the block .*, Gram matrices .*, a batch"):
        check_room("quantizing", need.total, need.total, str(need), "none")


def test_a_layer_that_runs_out_says_what_it_takes(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(LayerQuantizer, "quantize", fail)
    model = tiny_model("Llama")
    with pytest.raises(OutOfMemory, match=r"model\.layers\.0 ran out of memory: it takes at least .* GiB \(the block"):
        plain("int8").apply(run_of(model, model, tmp_path / "out"))
