"""Layers that are read ahead: the same tensors, counts and errors in whatever order layers are asked for."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from optcore.errors import BadCheckpoint
from optcore.streaming.lookahead import Lookahead
from optcore.streaming.reader import TensorReader

CPU = torch.device("cpu")
LAYERS = [[f"{index}.{name}" for name in ("a", "b")] for index in range(4)]


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (0, 0, 2, 1, 1, 3, 2, 3), (0, 1, 0, 1)])
def test_layers_come_as_they_are_stored_in_any_order(order: Sequence[int], tmp_path: Path) -> None:
    tensors = _checkpoint(tmp_path)
    reader = TensorReader(tmp_path)
    lookahead = Lookahead(reader, LAYERS, CPU, is_on=True)
    for done, index in enumerate(order, 1):
        found = dict(lookahead.tensors(index))
        assert list(found) == LAYERS[index]
        assert all(torch.equal(staged.stored, tensors[name]) for name, staged in found.items())
        assert all(staged.moved is staged.stored for staged in found.values())
        assert reader.bytes_read == done * sum(tensors[name].nbytes for name in LAYERS[0])


def test_the_walks_next_layer_is_in_memory_when_it_is_asked_for(tmp_path: Path) -> None:
    """Its file may even be gone by then; a walk backwards is followed too."""
    for order in ((0, 1, 2), (3, 2, 1)):
        _checkpoint(tmp_path)
        lookahead = Lookahead(TensorReader(tmp_path), LAYERS, CPU, is_on=True)
        for index in order[:-1]:
            list(lookahead.tensors(index))
        _wait(lookahead)
        (tmp_path / "model.safetensors").unlink()
        assert len(list(lookahead.tensors(order[-1]))) == 2


def test_a_damaged_layer_is_refused_when_its_turn_comes_and_not_before(tmp_path: Path) -> None:
    tensors = _checkpoint(tmp_path, damaged="1.b")
    for is_on in (True, False):
        reader = TensorReader(tmp_path)
        lookahead = Lookahead(reader, LAYERS, CPU, is_on=is_on)
        list(lookahead.tensors(0))
        layer = lookahead.tensors(1)
        assert next(layer)[0] == "1.a"
        with pytest.raises(BadCheckpoint, match=r"1\.b holds values that are not finite"):
            next(layer)
        assert reader.bytes_read == 3 * tensors["0.a"].nbytes
        assert len(list(lookahead.tensors(2))) == 2


def test_nothing_is_read_ahead_on_the_cpu(tmp_path: Path) -> None:
    _checkpoint(tmp_path)
    lookahead = Lookahead(TensorReader(tmp_path), LAYERS, CPU)
    list(lookahead.tensors(0))
    assert lookahead._journey is None


def _wait(lookahead: Lookahead) -> None:
    assert lookahead._journey
    lookahead._journey._thread.join()


def _checkpoint(folder: Path, damaged: str = "") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(5, 7, generator=generator) for names in LAYERS for name in names}
    if damaged:
        tensors[damaged][2, 3] = torch.inf
    save_file(tensors, folder / "model.safetensors")
    return tensors
