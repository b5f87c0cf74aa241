"""What a narrower model looks like, asked of transformers.

The configuration is edited, a skeleton is built from it, and every parameter's shape is held against what it was: a
dimension that followed is one to cut. A family whose configuration cannot say it moves other dimensions, or none.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from optcore.errors import OptError, RecipeError
from optcore.sources.checkpoint_files import CONFIG
from optcore.streaming.decoder import Decoder
from optcore.streaming.skeleton import skeleton


class Change(NamedTuple):
    """A dimension of a parameter, how long it was, and how long it will be."""

    dimension: int
    before: int
    after: int


Moved = dict[str, list[Change]]
"""By parameter, what changes of it."""


class Narrower:
    """Edits a configuration, one setting after the other, and tells which dimensions follow."""

    def __init__(self, decoder: Decoder, scratch: Path) -> None:
        self.name = type(decoder.model).__name__
        self.model = decoder.model
        self.known = decoder.model.config.get_text_config()
        self.config = json.loads((decoder.reader.folder / CONFIG).read_text())
        self._folder = scratch / "narrower"
        self.narrowed: PreTrainedModel = decoder.model
        """A skeleton with all edits so far."""

    def key(self, name: str) -> str:
        """What this family calls a setting."""
        return str(self.known.attribute_map.get(name, name))

    def keep_head_size(self) -> None:
        """Spell out the size of a head, where there are any: it may follow from what will change."""
        if heads := getattr(self.known, "num_attention_heads", None):
            self._text["head_dim"] = getattr(self.known, "head_dim", None) or self.known.hidden_size // heads

    def moved(self, key: str, value: int, axis: str) -> Moved:
        """By parameter that follows a setting: its dimensions that change, what they were, what they will be."""
        self._text[key] = value
        model = self._built(f"{key} {value}", axis)
        before, after = _shapes(self.narrowed), _shapes(model)
        changed = {name: _changes(shape, after.get(name, ())) for name, shape in before.items()}
        if before.keys() != after.keys() or any(len(before[name]) != len(after[name]) for name in before):
            raise self.refused(axis, f"with {key} {value} it would be made of other parts")
        if factor := _other_factor(self.narrowed, model):
            raise self.refused(axis, f"{factor} follows from {key}, and what it multiplies would change")
        self.narrowed = model
        return {name: changes for name, changes in changed.items() if changes}

    def revert(self, key: str, value: int) -> None:
        """Take back an edit that nothing followed."""
        self._text[key] = value

    def refused(self, axis: str, why: str) -> RecipeError:
        """The error for a family that cannot be cut along an axis."""
        instead = {"heads": ", make zeros of them with `masked: true`"}.get(axis, " (`width` has it in it)")
        remedy = f"leave `{axis}` out{instead}, or prune `depth`"
        return RecipeError(f"{self.name} cannot be cut along `{axis}`: {why}", remedy=remedy, field="/chain")

    @property
    def _text(self) -> dict[str, Any]:
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    def _built(self, said: str, axis: str) -> PreTrainedModel:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / CONFIG).write_text(json.dumps(self.config))
        try:
            return skeleton(self._folder, torch.float32)
        except OptError as error:
            raise self.refused(axis, f"with {said} transformers does not take it ({error.message})") from error


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _other_factor(before: nn.Module, after: nn.Module) -> str:
    """Name of a number that a module computes with and that changed, such as Gemma's sqrt(H) after embeddings."""
    modules = dict(before.named_modules())
    for path, module in after.named_modules():
        known = vars(modules[path]) if path in modules else {}
        for name, value in vars(module).items():
            if isinstance(value, float) and known.get(name) != value:
                return f"{path}.{name}"
    return ""


def _changes(before: tuple[int, ...], after: tuple[int, ...]) -> list[Change]:
    pairs = enumerate(zip(before, after, strict=False))
    return [Change(dimension, was, now) for dimension, (was, now) in pairs if was != now]
