"""A draft's folder: written in a layout that engines load, and read back from any of them, trusted by nobody."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from optcore.drafts import (
    layout_dflash,
    layout_eagle,
    layout_medusa,
    layout_modelopt,
    layout_plain,
    layout_speculators,
)
from optcore.drafts.build import rebuilt_draft
from optcore.drafts.checks import refused, section
from optcore.drafts.draft import Draft
from optcore.drafts.parts import DraftParts, TargetFacts
from optcore.errors import RecipeError
from optcore.sources.checkpoint_files import CONFIG, INDEX
from optcore.sources.local import check_weights, read_object
from optcore.streaming.writer import TensorWriter

if TYPE_CHECKING:
    from optcore.speculative.target import TargetEnds


class Layout(NamedTuple):
    """How one layout is written and read."""

    config: Callable[[DraftParts, TargetFacts], dict[str, Any]]
    tensors: Callable[[DraftParts], dict[str, torch.Tensor]]
    read: Callable[[dict[str, Any], dict[str, torch.Tensor], int], DraftParts]


LAYOUTS = {
    "eagle": Layout(layout_eagle.config, layout_eagle.tensors, layout_eagle.read),
    "modelopt": Layout(layout_modelopt.config, layout_modelopt.tensors, layout_eagle.read),
    "speculators": Layout(layout_speculators.config, layout_speculators.tensors, layout_speculators.read),
    "medusa": Layout(layout_medusa.config, layout_medusa.tensors, layout_medusa.read),
    "dflash": Layout(layout_dflash.config, layout_dflash.tensors, layout_dflash.read),
    "plain": Layout(layout_plain.config, layout_plain.tensors, layout_plain.read),
}
_OF_METHOD = {
    "eagle3": ("eagle", "modelopt", "speculators"),
    "medusa": ("medusa",),
    "block": ("dflash",),
    "mtp": ("plain",),
}


def layout_of(method: str, asked: str) -> str:
    """The layout that a method is written in: the one that was asked for, where it has a choice."""
    return asked if asked in _OF_METHOD[method] else _OF_METHOD[method][0]


def write_draft(draft: Draft, folder: Path, layout: str, facts: TargetFacts, *, tokens: int) -> None:
    """Write `config.json` and safetensors in bfloat16; `tokens` is how many are drafted a round. Raises
    `RecipeError`."""
    write_parts(parts_of(draft, tokens), folder, layout, facts)


def write_parts(
    parts: DraftParts, folder: Path, layout: str, facts: TargetFacts, dtype: torch.dtype = torch.bfloat16
) -> None:
    """See `write_draft`."""
    said = layout_config(parts, layout, facts)
    for name in ("dtype", "torch_dtype"):
        if name in said:
            said[name] = str(dtype).removeprefix("torch.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(said, indent=2) + "\n")
    writer = TensorWriter(folder)
    for name, tensor in LAYOUTS[layout].tensors(parts).items():
        held = tensor.detach().cpu()
        writer.add(name, held.to(dtype) if held.is_floating_point() else held)
    writer.close()


def layout_config(parts: DraftParts, layout: str, facts: TargetFacts) -> dict[str, Any]:
    """What `config.json` says, by the names and shapes of the tensors alone. Raises `RecipeError` for a draft that the
    layout cannot say."""
    if list(parts.taps) != sorted(set(parts.taps)):
        raise RecipeError(
            f"the draft reads the layers {list(parts.taps)}, and engines hand them over in ascending order",
            remedy="give taps in ascending order",
            field="/chain",
        )
    return LAYOUTS[layout].config(parts, facts)


def read_draft(folder: Path, target: "TargetEnds") -> Draft:
    """The draft in a folder, on a target that taps what it does (`read_parts` says what). Raises `BadCheckpoint`."""
    parts = read_parts(folder, len(target.decoder.layers))
    _require_target(parts, target)
    return rebuilt_draft(parts, target)


def read_parts(folder: Path, layers: int) -> DraftParts:
    """What is in a draft's folder, for a target of so many layers. Raises `BadCheckpoint` and `UnsafeCheckpoint`."""
    if not folder.is_dir() or not (folder / CONFIG).is_file():
        raise refused(f"has no {CONFIG}")
    weights = [name for name in check_weights(folder, (CONFIG,), "/chain") if name not in (CONFIG, INDEX)]
    config, tensors = read_object(folder / CONFIG, "/chain"), dict[str, torch.Tensor]()
    for name in weights:
        try:
            with safe_open(folder / name, framework="pt") as file:
                tensors.update({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 - no mapping
        except SafetensorError as error:
            raise refused(f"has {name}, which is no safetensors file: {error}") from error
    return LAYOUTS[_layout_found(config)].read(config, tensors, layers)


def parts_of(draft: Draft, tokens: int) -> DraftParts:
    """A draft taken apart."""
    tensors, taps, mask = draft.plain_tensors(), tuple(draft.taps), getattr(draft, "mask_token", None)
    sizes = draft.sizes.model_dump() if hasattr(draft, "sizes") else {}  # Medusa has no layer
    return DraftParts(draft.method, tensors, taps, draft.vocabulary, sizes, tokens, mask)


def layout_found(folder: Path) -> str:
    """The layout of a folder that `read_parts` has read."""
    return _layout_found(read_object(folder / CONFIG, "/chain"))


def _layout_found(config: dict[str, Any]) -> str:
    said = config.get("architectures")
    architectures = said if isinstance(said, list) else []
    if layout_speculators.KIND in config:
        return "speculators"
    if config.get(layout_plain.KEY) == layout_plain.FORMAT:
        return "plain"
    if config.get("model_type") == layout_medusa.KIND:
        return "medusa"
    if layout_dflash.ARCHITECTURE in architectures:
        return "dflash"
    if any(name in architectures for name in layout_eagle.ARCHITECTURES):
        return "modelopt" if layout_modelopt.MARK in section(config, "eagle_config") else "eagle"
    raise refused(f"is of the architectures {architectures}, and of no layout that is known")


def _require_target(parts: DraftParts, target: "TargetEnds") -> None:
    if parts.taps != target.taps:
        raise refused(f"reads the layers {parts.taps}, and its target was made for {target.taps}")
    if parts.vocabulary.size != target.vocabulary:
        raise refused(f"is for {parts.vocabulary.size} tokens, and its target has {target.vocabulary}")
    own = parts.tensors.pop("embed_tokens.weight", None)
    if own is not None and not torch.equal(own, target.embeddings.weight.to(own)):
        raise refused("has embeddings of its own, and only the target's are supported")
