"""Hidden states between layers: the same in memory and on disk, and typed errors when they do not fit."""

from pathlib import Path

import pytest
import torch
from fixtures.tiny_models import MakeModel

from optcore.errors import OutOfDisk, UnknownArchitecture
from optcore.streaming.decoder import Decoder
from optcore.streaming.hidden import HiddenStates, allocate


def test_states_on_disk_are_those_in_memory(tiny_model: MakeModel, tmp_path: Path) -> None:
    decoder = Decoder(tiny_model("Llama"))
    tokens_ST = torch.randint(0, 2048, (5, 24), generator=torch.Generator().manual_seed(1))
    in_memory = HiddenStates(decoder, tokens_ST, tmp_path)
    on_disk = HiddenStates(decoder, tokens_ST, tmp_path, in_memory_bytes=1000)
    for index in range(len(decoder)):
        with decoder.layer(index) as layer:
            in_memory.advance(index, layer)
            on_disk.advance(index, layer)
    assert torch.equal(in_memory.hidden_STH, on_disk.hidden_STH)
    assert list(tmp_path.iterdir()) == []  # a killed process leaves nothing behind


def test_batches_of_every_size_are_what_one_batch_is(tiny_model: MakeModel, tmp_path: Path) -> None:
    decoder = Decoder(tiny_model("Mistral"))
    tokens_ST = torch.randint(0, 2048, (5, 40), generator=torch.Generator().manual_seed(2))
    whole, parts = (HiddenStates(decoder, tokens_ST, tmp_path) for _ in range(2))
    parts.batch_windows = 2
    parts._remember(decoder.embed(tokens_ST[:2]))
    parts._remember(decoder.embed(tokens_ST[:1]))
    with decoder.layer(0) as layer:
        whole.advance(0, layer)
        parts.advance(0, layer)
    torch.testing.assert_close(parts.hidden_STH, whole.hidden_STH, rtol=1e-5, atol=1e-5)


def test_too_little_disk_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(OutOfDisk, match="free in the work folder"):
        allocate((2**20, 2**12, 2**12), torch.float32, tmp_path, in_memory_bytes=0)
    assert list(tmp_path.iterdir()) == []


def test_arguments_that_depend_on_the_tokens_are_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    decoder = Decoder(tiny_model("Llama"))
    states = HiddenStates(decoder, torch.zeros((2, 8), dtype=torch.long), tmp_path)
    other = decoder.embed(torch.ones((2, 8), dtype=torch.long))
    changed = tuple({**arguments, "per_layer_input": torch.ones(2)} for arguments in other.arguments)
    with pytest.raises(UnknownArchitecture, match="per_layer_input"):
        states._remember(other._replace(arguments=changed))
