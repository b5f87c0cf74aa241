"""A draft taken apart: what a layout writes of it, and gives back when it is read.

Shapes: V tokens of the target, D of the draft, H hidden size.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from optcore.architecture import positions
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.errors import BadCheckpoint

_MOST = 2**24
"""Of anything that a configuration counts: memory is set aside by some of these numbers."""


class DraftParts(NamedTuple):
    """All that a draft is, without its class."""

    method: str
    """As the recipe names it."""
    tensors: dict[str, torch.Tensor]
    """By the names of the draft's `state_dict`."""
    taps: tuple[int, ...]
    """Layers of the target, from 0, whose outputs it reads; ascending, since engines gather them in that order."""
    vocabulary: DraftVocabulary
    sizes: dict[str, Any]
    """In the words of Llama's configuration: `hidden_size`, `num_attention_heads`, `num_key_value_heads`, `head_dim`,
    `intermediate_size`, `rms_norm_eps`, `rope_theta`; of `eagle3` also `norm_before_residual`."""
    tokens: int
    """Tokens drafted a round, without the one that is already chosen."""
    mask_token: int | None = None
    """Of `block`: the target's token that stands where a guess is wanted."""

    def count(self, prefix: str) -> int:
        """How many different things are named by this and a number."""
        return len({name.removeprefix(prefix).split(".")[0] for name in self.tensors if name.startswith(prefix)})


@dataclass(frozen=True)
class TargetFacts:
    """What a draft's configuration says of its target."""

    config: dict[str, Any] = field(repr=False)
    """The target's `config.json`."""
    name: str
    """Its Hub repository, or what its folder is called: it is published with the draft."""

    @property
    def text(self) -> dict[str, Any]:
        """The part about its decoder."""
        return {**self.config, **(self.config.get("text_config") or {})}

    @property
    def architectures(self) -> list[str]:
        """Names of its classes."""
        return list(self.config.get("architectures") or ())

    @property
    def longest(self) -> int:
        """Tokens that its positions reach."""
        return positions(self.config) or 2048


def vocabulary_tensors(vocabulary: DraftVocabulary) -> dict[str, torch.Tensor]:
    """`d2t` int64 [D] is added to a draft's id to get the target's; `t2d` bool [V] says which tokens it knows."""
    return {"d2t": vocabulary.d2t_D.contiguous(), "t2d": vocabulary.t2d_V}


def taken_vocabulary(tensors: dict[str, torch.Tensor], known: int, size: int) -> DraftVocabulary:
    """Take `d2t` and `t2d` out of a folder's tensors. Raises `BadCheckpoint` where they contradict each other."""
    d2t_D, t2d_V = tensors.pop("d2t", None), tensors.pop("t2d", None)
    if d2t_D is None:
        if known != size:
            raise refused(f"has {known} of {size} tokens and no d2t that says which")
        return DraftVocabulary.whole(size)
    if d2t_D.dtype != torch.int64 or d2t_D.shape != (known,):
        raise refused(f"has d2t as {_said(d2t_D)}, and int64 [{known}] is needed")
    ids_D = torch.arange(known) + d2t_D
    if not ((ids_D >= 0) & (ids_D < size)).all():
        raise refused(f"has d2t that leads out of the target's {size} tokens")
    if (ids_D.diff() <= 0).any():
        raise refused("has d2t that names tokens twice or out of order")
    vocabulary = DraftVocabulary(ids_D, size)
    if t2d_V is not None and not (t2d_V.dtype == torch.bool and torch.equal(t2d_V, vocabulary.t2d_V)):
        raise refused("has t2d that disagrees with d2t")
    return vocabulary


def require_tensors(tensors: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise `BadCheckpoint` unless exactly these are there, of these shapes, in floating point and finite."""
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise refused(f"lacks {missing[0]}")
    if foreign := sorted(tensors.keys() - shapes.keys()):
        raise refused(f"has {foreign[0]}, which no draft of this kind has here")
    for name, shape in shapes.items():
        if not tensors[name].is_floating_point() or tensors[name].shape != shape:
            raise refused(f"has {name} as {_said(tensors[name])}, and its configuration says {list(shape)}")
        if not tensors[name].isfinite().all():
            raise refused(f"has {name} with values that are not finite")


def whole_number(config: dict[str, Any], name: str, default: int | None = None) -> int:
    """A number of a configuration that counts something. Raises `BadCheckpoint`."""
    value = config.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MOST:
        raise refused(f"says {name}: {value!r}, and a whole number from 1 to {_MOST} is needed")
    return value


def real_number(config: dict[str, Any], name: str, default: float) -> float:
    """A positive number of a configuration. Raises `BadCheckpoint`."""
    value = config.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
        raise refused(f"says {name}: {value!r}, and a positive number is needed")
    return float(value)


def section(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of a configuration; empty where there is none. Raises `BadCheckpoint`."""
    found = config.get(name) or {}
    if not isinstance(found, dict):
        raise refused(f"says {name}: {found!r}, and an object is needed")
    return found


def layer_numbers(found: object, name: str, shift: int = 0) -> tuple[int, ...]:
    """Numbers of layers, ascending, each plus `shift`. Raises `BadCheckpoint`."""
    if not isinstance(found, list) or not found or not all(isinstance(one, int) for one in found):
        raise refused(f"says {name}: {found!r}, and a list of layers is needed")
    taps = tuple(one + shift for one in found)
    if taps[0] < 0 or list(taps) != sorted(set(taps)):
        raise refused(f"says {name}: {found!r}, and ascending layers of the target are needed")
    return taps


def refused(what: str) -> BadCheckpoint:
    """A folder that is no draft we can trust or run."""
    remedy = "download or export the draft again, or name another"
    return BadCheckpoint(f"the draft {what}", remedy=remedy, field="/chain")


def _said(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
