"""What a draft's folder says, checked: it may come from anywhere, and is trusted by nobody."""

from typing import Any

import torch

from optcore.errors import BadCheckpoint

_MOST = 2**24
"""Of anything that a configuration counts: memory is set aside by some of these numbers."""


def require_tensors(tensors: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise `BadCheckpoint` unless exactly these are there, of these shapes, in floating point and finite."""
    if missing := sorted(shapes.keys() - tensors.keys()):
        raise refused(f"lacks {missing[0]}")
    if foreign := sorted(tensors.keys() - shapes.keys()):
        raise refused(f"has {foreign[0]}, which no draft of this kind has here")
    for name, shape in shapes.items():
        if not tensors[name].is_floating_point() or tensors[name].shape != shape:
            raise refused(f"has {name} as {described(tensors[name])}, and its configuration says {list(shape)}")
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


def described(tensor: torch.Tensor) -> str:
    """Its type and shape, for a message."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
