"""A trained model in the files of a plain checkpoint: every tensor of the one it came from, in its name and type."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from optcore.links import carry_structure, link_companions
from optcore.streaming.names import Source
from optcore.streaming.shares import carry_shares, shares_of
from optcore.streaming.writer import TensorWriter
from optcore.streaming.zeros import carry_zeros
from optcore.training.adapters import changed_weights
from optcore.training.ranks import Ranks
from optcore.training.student import Student

if TYPE_CHECKING:
    from optcore.run import Run

Value = Callable[[], torch.Tensor]


@torch.no_grad()
def write_dense(run: "Run", student: Student, ranks: Ranks) -> None:
    """Write the student to `run.out`, adapters merged. Every process must call it; the first one writes.

    Raises `FormLost` where a zero of a sparse checkpoint is none any more, or a weight not the number that it shares.
    """
    changed, reader = _changed(student), student.decoder.reader
    types = {name: share.dtype for share in shares_of(student.folder) for name in share.names}
    writer = TensorWriter(run.out)
    for count, name in enumerate(reader.names):
        tensor = reader.tensor(name)
        if name in changed:
            tensor = _rewritten(tensor, changed[name], types.get(name, tensor.dtype))
        if ranks.is_first:
            writer.add(name, tensor)
        run.progress("packing", count + 1, len(reader.names))
    if ranks.is_first:
        writer.close()
        link_companions(student.folder, run.out)
        carry_zeros(run)
        carry_shares(run)
        carry_structure(run.checkpoint, run.out)
    ranks.wait()


def _changed(student: Student) -> dict[str, list[tuple[Source, Value]]]:
    """By stored tensor, the parts of it that may have changed; a tensor that holds all experts has many."""
    found: dict[str, list[tuple[Source, Value]]] = {}
    for path, value in changed_weights(student.model):
        if source := student.decoder.names.sources.get(path):  # an adapter's own matrices are stored nowhere
            found.setdefault(source.stored, []).append((source, value))
    return found


def _rewritten(tensor: torch.Tensor, parts: list[tuple[Source, Value]], dtype: torch.dtype) -> torch.Tensor:
    """`dtype`: what values are rounded to, which may be narrower than the tensor's: its tables hold no others."""
    tensor = tensor.clone()
    for source, value in parts:
        source.of(tensor).copy_(value().to(dtype))
    return tensor
