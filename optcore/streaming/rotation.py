"""Rotations folded into a decoder's weights: outliers spread over many channels, and the same function as before.

R1 turns the residual stream: x becomes Q x, so what writes to it is multiplied by Q and what reads it by Q^T. RMSNorm
without a gain commutes with Q; its gain is moved into its readers first. R2 turns the values of each head, between v
and o. (QuaRot, arXiv:2404.00456; SpinQuant, arXiv:2405.16406.) What reads, what writes and how wide a head is comes
from structure, and each rotated layer is tried before it is believed.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from optcore.algorithms.hadamard import is_order
from optcore.errors import UnknownArchitecture
from optcore.kernels.hadamard import hadamard
from optcore.streaming.decoder import Decoder, State
from optcore.streaming.groups import linears
from optcore.streaming.replay import Recording, common_ancestor, has_rows_of
from optcore.streaming.structure import Fold, folds

# What may be left of a change that was made and undone, and of the output itself: float32 noise, and nothing else.
_LEFT = 1e-4
_NOISE = 2e-6


class Rotation:
    """Q: random signs, then Hadamard matrices over blocks of channels."""

    def __init__(self, size: int, block: int, seed: int | None) -> None:
        self.block = block
        self.signs_K = torch.ones(size)
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            self.signs_K = torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Q x for each vector along the last dimension; a reader's weight becomes W Q^T the same way, row by row."""
        return hadamard(x * self.signs_K, self.block)


def fold_gain(norm: nn.Module, offset: float, readers: Sequence[nn.Module]) -> None:
    """Move a norm's gain into the columns of what reads it."""
    gain_K = norm.weight.data + offset
    for reader in readers:
        reader.weight.data = reader.weight.data * gain_K
    norm.weight.data = torch.full_like(norm.weight.data, 1 - offset)


def rotate_readers(rotation: Rotation, readers: Sequence[nn.Module]) -> None:
    """W becomes W Q^T: the weights then undo what was done to their input."""
    for reader in readers:
        reader.weight.data = rotation(reader.weight.data)


def rotate_writers(rotation: Rotation, writers: Sequence[nn.Linear]) -> None:
    """W becomes Q W, and a bias b becomes Q b."""
    for writer in writers:
        writer.weight.data = rotation(writer.weight.data.T).T.contiguous()
        if writer.bias is not None:
            writer.bias.data = rotation(writer.bias.data)


class LayerRotation:
    """Rotates one layer in memory after another."""

    def __init__(self, decoder: Decoder, probe: State, residual: Rotation | None, heads: bool) -> None:
        self._decoder = decoder
        self._probe = probe
        self._residual = residual
        self._heads = heads

    def apply(self, index: int, layer: nn.Module) -> int:
        """Rotate; returns the size of the blocks that values are turned in, 1 where they are left. Raises
        `UnknownArchitecture` where the rotated residual stream would give another result."""
        found = folds(self._decoder, index, layer, self._probe)
        recording = Recording(self._decoder, index, layer, self._probe)
        block = max((_rotate_values(recording, fold) for fold in found), default=1) if self._heads else 1
        if self._residual:
            self._rotate_residual(index, recording, found, self._residual)
        return block

    def _rotate_residual(self, index: int, recording: Recording, found: list[Fold], rotation: Rotation) -> None:
        layer, before = recording.layer, recording.calls[""].output
        readers: list[str] = []
        for fold in found:
            if fold.kind == "norm" and _is_residual(recording, fold.producer):
                names = [*fold.consumers, *fold.routers]
                fold_gain(layer.get_submodule(fold.producer), fold.offset, [layer.get_submodule(n) for n in names])
                readers += names
        rotate_readers(rotation, [layer.get_submodule(name) for name in readers])
        rotate_writers(rotation, [layer.get_submodule(name) for name in _writers(recording, readers)])
        turned = self._probe._replace(hidden_BTH=rotation(self._probe.hidden_BTH))
        after = self._decoder.forward(index, layer, turned).hidden_BTH
        change = (before - self._probe.hidden_BTH).norm()
        if not (after - rotation(before)).norm() <= _LEFT * change + _NOISE * before.norm():
            raise cannot_rotate(self._decoder, f"layer {index} does not give the same on a rotated residual stream")


def cannot_rotate(decoder: Decoder, why: str) -> UnknownArchitecture:
    """The error for a model whose structure does not allow it."""
    return UnknownArchitecture(
        f"{type(decoder.model).__name__} cannot be rotated: {why}",
        remedy="leave `rotate` out of the chain, or set `residual: false` to turn values alone; "
        "the residual stream needs RMSNorm before each block and nothing after it",
        field="/chain",
    )


def _is_residual(recording: Recording, norm: str) -> bool:
    """Whether a norm reads the layer's hidden states and not what a linear made of them (as in MLA)."""
    given = recording.calls[norm].input
    width = recording.probe.hidden_BTH.shape[-1]
    if given is None or given.shape[-1] != width:
        return False
    made = (recording.calls[name].output for name in linears(recording.layer) if name in recording.calls)
    return not any(has_rows_of(given, output) for output in made)


def _writers(recording: Recording, readers: Sequence[str]) -> Iterator[str]:
    """Linears whose output is, as it stands, what the module around them gives to the residual stream."""
    width = recording.probe.hidden_BTH.shape[-1]
    for name, module in linears(recording.layer).items():
        call, around = recording.calls.get(name), recording.calls.get(name.rpartition(".")[0])
        if not call or not around or module.out_features != width or name in readers:
            continue
        if has_rows_of(call.output, around.output):
            yield name


def _rotate_values(recording: Recording, fold: Fold) -> int:
    """Turn the channels between a linear and its reader in the largest blocks that leave the output as it was.

    Values pass through attention linearly within a head, so the blocks that hold are those within heads. What passes
    through a product with a gate does not even hold for pairs.
    """
    if fold.kind != "linear":
        return 1
    size = len(fold.rows_K)
    orders = [order for order in range(2, size + 1) if size % order == 0 and is_order(order)]
    if not orders or not _try_values(recording, fold, orders[0], keep=False):
        return 1
    return next(order for order in reversed(orders) if _try_values(recording, fold, order, keep=True))


def _try_values(recording: Recording, fold: Fold, order: int, *, keep: bool) -> bool:
    """Turn the values in blocks; taken back unless the output around stays and `keep` is set."""
    layer = recording.layer
    blocks = fold.rows_K.view(-1, order).unique(dim=0)
    if blocks.numel() != len(fold.rows_K.unique()):
        return False  # repeated heads would be turned differently
    producer, readers = layer.get_submodule(fold.producer), [layer.get_submodule(path) for path in fold.consumers]
    ancestor = common_ancestor(fold.producer, fold.consumers[0])
    parameters = [p for module in (producer, *readers) for p in module.parameters(recurse=False)]
    kept = [parameter.data for parameter in parameters]
    plain = recording.replay(ancestor)
    rows = blocks.flatten()
    for parameter in producer.parameters(recurse=False):
        turned = hadamard(parameter.data[rows].movedim(0, -1), order).movedim(-1, 0)
        parameter.data = parameter.data.index_copy(0, rows, turned)
    moved = (recording.replay(ancestor) - plain).norm()
    for reader in readers:
        reader.weight.data = hadamard(reader.weight.data, order)
    left = (recording.replay(ancestor) - plain).norm()
    holds = bool(left <= min(_LEFT * moved + _NOISE * plain.norm(), 0.1 * moved))
    if not (holds and keep):
        for parameter, data in zip(parameters, kept, strict=True):
            parameter.data = data
    return holds
