"""Whom a student learns from: a model beside it in memory, or what such a model said once, kept on disk.

Shapes: B windows of T tokens, N rows that count, V vocabulary, H hidden size.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import nn

from optcore.streaming.decoder import Decoder
from optcore.streaming.simulate import as_quantized
from optcore.techniques.distilling import Distilling
from optcore.techniques.losses import needs_teacher
from optcore.training.divergences import TopK
from optcore.training.head import find_head, last_hidden
from optcore.training.hidden_loss import Stack
from optcore.training.linear_loss import head_logits
from optcore.training.ranks import Ranks
from optcore.training.teacher_cache import TeacherCache

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.techniques.training import Training


class Rows(NamedTuple):
    """What a teacher says of the rows of a batch that count."""

    of: Callable[[slice], torch.Tensor | TopK]
    """Logits [n, V] or top k of some of them."""
    hidden_NH: torch.Tensor | None = None
    """Last hidden states, where `weight_VH` alone makes logits of them."""
    weight_VH: torch.Tensor | None = None
    layers_BTH: tuple[torch.Tensor, ...] = ()
    """Hidden states after each layer, where they were asked for."""


class Teacher(Protocol):
    """Whoever knows what the student should say."""

    def rows(self, inputs: dict[str, torch.Tensor], counts_BT: torch.Tensor, windows: list[int]) -> Rows:
        """What it says of the rows where `counts_BT` holds. `windows` are the numbers of the batch's windows."""
        ...


class LiveTeacher:
    """A model that answers when asked, a quantized one as its quantization says; where several processes train, each
    has it whole."""

    def __init__(self, folder: Path, device: torch.device, *, keeps_layers: bool = False) -> None:
        self.decoder = Decoder(folder, device)
        self.model: Any = self.decoder.load_all()
        self._held = as_quantized(self.decoder)
        self._head = find_head(self.model)
        self._keeps_layers = keeps_layers

    @property
    def stack(self) -> Stack:
        """Its layers and their width."""
        return Stack(len(self.decoder), int(self.model.config.get_text_config().hidden_size))

    @torch.no_grad()
    def rows(self, inputs: dict[str, torch.Tensor], counts_BT: torch.Tensor, windows: list[int]) -> Rows:
        """See `Teacher`."""
        with kept_outputs(self.decoder.layers if self._keeps_layers else ()) as layers:
            if self._head is None:
                logits_NV = self.model(**inputs, use_cache=False).logits[counts_BT]
                return Rows(lambda part: logits_NV[part], layers_BTH=tuple(layers))
            hidden_NH = last_hidden(self.model, **inputs)[counts_BT]
        head = self._head
        of = head_logits(hidden_NH, head.linear.weight, head.linear.bias, head.transform)
        is_plain = head.transform is None and head.linear.bias is None
        return Rows(of, hidden_NH, head.linear.weight if is_plain else None, tuple(layers))


class CachedTeacher:
    """Reads the k likeliest tokens that a teacher named for each position of each window."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.cache = TeacherCache(folder)
        self._device = device

    def rows(self, inputs: dict[str, torch.Tensor], counts_BT: torch.Tensor, windows: list[int]) -> Rows:
        """See `Teacher`."""
        found = self.cache.rows(windows).rows(counts_BT.flatten().cpu()).to(self._device)
        return Rows(found.rows)


def teacher_of(run: "Run", technique: "Training", ranks: Ranks) -> Teacher | None:
    """Whom a technique's student learns from; None where it learns from the text."""
    if not isinstance(technique, Distilling) or not needs_teacher(technique.losses):
        return None
    if run.answers:
        return CachedTeacher(run.answers, ranks.device)
    keeps_layers = any(loss.kind == "hidden_mse" for loss in technique.losses)
    return LiveTeacher(run.teacher or run.checkpoint, ranks.device, keeps_layers=keeps_layers)


@contextmanager
def kept_outputs(layers: Iterable[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """The outputs of some layers while a model runs, in order."""
    found: list[torch.Tensor] = []
    handles = [layer.register_forward_hook(lambda _, __, out: found.append(_first(out))) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _first(out: Any) -> torch.Tensor:
    hidden: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return hidden
