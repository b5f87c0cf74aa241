"""Copies that a CUDA device makes while it computes: the same bytes as by copies that everybody waits for."""

from pathlib import Path

import pytest
import torch
from fixtures.tiny_models import MakeModel

from optcore.streaming.decoder import Decoder
from optcore.streaming.hidden import HiddenStates
from optcore.streaming.reader import TensorReader
from optcore.streaming.staging import Staging

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize("pinned", [True, False])
def test_batches_go_to_the_device_and_back_unchanged(pinned: bool) -> None:
    source = torch.randn(37, 64, 512, generator=torch.Generator().manual_seed(1))
    given = source.pin_memory() if pinned else source
    made = torch.full_like(source, torch.nan, pin_memory=pinned)
    staging = Staging(torch.device("cuda"))
    for rows, batch in staging.arriving(given, [slice(start, start + 4) for start in range(0, 37, 4)]):
        torch.cuda._sleep(1_000_000)  # the copy of what follows is done before this
        staging.keep(batch * 2, made[rows])
    staging.settle()
    assert torch.equal(made, source * 2)


def test_layers_read_ahead_are_what_is_stored(tiny_model: MakeModel) -> None:
    folder = tiny_model("Llama")
    decoder, reader = Decoder(folder), TensorReader(folder)
    for index in (*range(len(decoder)), 0, *reversed(range(len(decoder)))):
        with decoder.layer(index, keep_stored=True) as layer:
            torch.cuda._sleep(1_000_000)
            for name, stored in decoder.stored_tensors(index).items():
                assert torch.equal(stored, reader.tensor(name))
                path = name.removeprefix(f"{decoder.layer_name(index)}.")
                assert torch.equal(layer.get_parameter(path).cpu(), stored.to(decoder.dtype))


def test_states_on_disk_are_those_in_memory(tiny_model: MakeModel, tmp_path: Path) -> None:
    decoder = Decoder(tiny_model("Llama"))
    tokens_ST = torch.randint(0, 2048, (9, 24), generator=torch.Generator().manual_seed(1))
    in_memory, on_disk = HiddenStates(decoder, tokens_ST, tmp_path), HiddenStates(decoder, tokens_ST, tmp_path, 1000)
    assert in_memory.hidden_STH.is_pinned()
    for states in (in_memory, on_disk):
        states.batch_windows = 3
        states._remember(decoder.embed(tokens_ST[:3]))
    for index in range(len(decoder)):
        with decoder.layer(index) as layer:
            in_memory.advance(index, layer)
            on_disk.advance(index, layer)
    assert torch.equal(in_memory.hidden_STH, on_disk.hidden_STH)
