"""Which layers get a window, and where it is written: into the configuration where that says all, else beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from optcore.conditional import NOTHING, Conditional, Window
from optcore.errors import RecipeError, UnknownArchitecture
from optcore.links import link_checkpoint, link_forms
from optcore.report import Task
from optcore.sources.checkpoint_files import CONFIG
from optcore.streaming.conditions import visible
from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import probe_state

if TYPE_CHECKING:
    from optcore.run import Run
    from optcore.stage import Windowing
    from optcore.techniques.attention_window import AttentionWindow

IN_CONFIG = "any engine that honours `sliding_window` of config.json: its KV cache holds the window alone"
_OWN_WINDOWS = ("sliding", "chunked", "local")
_TRIED = Window(tokens=3, sinks=0, layers=())
_TRIED_tokens = 8


def set_window(run: "Run", technique: "AttentionWindow") -> None:
    """Link `run.checkpoint` to `run.out` with a window. Raises `RecipeError` for layers that cannot have one."""
    decoder = Decoder(run.checkpoint)
    layers = _layers(decoder, technique.layers)
    link_checkpoint(run.checkpoint, run.out)
    link_forms(run.checkpoint, run.out)
    if _stands_in_config(decoder, technique, layers, run.scratch):
        _write_config(run.out, decoder, technique.window)
        truth = IN_CONFIG
    else:
        truth = NOTHING
        Conditional(window=Window(tokens=technique.window, sinks=technique.sinks, layers=layers)).save(run.out)
    run.results["attention_window"] = {"layers": list(layers), "accelerated_by": truth}
    run.notice(
        f"{len(layers)} of {len(decoder)} layers see {technique.window} tokens and {technique.sinks} sinks; "
        f"accelerated by: {truth}"
    )


def needs_conditions(model: Path, windowing: "Windowing", task: Task, scratch: Path) -> bool:
    """Whether `conditional.json` must say the window, because the configuration of the model cannot. Raises
    `RecipeError` for layers that cannot have one, and for a target that cannot hold the model with it."""
    decoder, technique = Decoder(model), windowing.technique
    if not _stands_in_config(decoder, technique, _layers(decoder, technique.layers), scratch):
        return True
    windowed = scratch / "windowed"
    windowed.mkdir(parents=True, exist_ok=True)
    link_checkpoint(model, windowed)
    _write_config(windowed, decoder, technique.window)
    for place, export in windowing.exports.items():
        export.check_model(windowed, task, place)
    return False


def _stands_in_config(decoder: Decoder, technique: "AttentionWindow", layers: tuple[int, ...], scratch: Path) -> bool:
    return len(layers) == len(decoder) and not technique.sinks and _config_says_all(decoder, scratch)


def _layers(decoder: Decoder, asked: str | Sequence[int]) -> tuple[int, ...]:
    """Layers that see everything so far: those with a window or a state of their own keep that."""
    able = [index for index in range(len(decoder)) if _is_full(decoder, index)]
    if not able:
        raise _refused(
            f"no layer of this {type(decoder.model).__name__} attends to everything",
            "leave the window out: the model has its own, or no attention",
        )
    chosen = able if isinstance(asked, str) else sorted(set(asked))
    if unable := [index for index in chosen if index not in able]:
        said = f"layers {', '.join(map(str, unable))} have no full attention that could get a window"
        raise _refused(said, f"choose among {', '.join(map(str, able))}")
    if not chosen:
        raise _refused("no layer is chosen for the window", "leave `layers` out, or name some")
    arguments = probe_state(decoder).arguments
    if not all("attention_mask" in arguments[index] for index in chosen):
        raise _refused(f"layers of {type(decoder.model).__name__} take no attention mask", "leave the window out")
    return tuple(chosen)


def _is_full(decoder: Decoder, index: int) -> bool:
    config = decoder.model.config.get_text_config()
    if not decoder.has_key_value_cache(index):
        return False
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return not kinds[index].startswith(_OWN_WINDOWS)
    return not getattr(config, "sliding_window", None)


def _config_says_all(decoder: Decoder, scratch: Path) -> bool:
    """Whether `sliding_window` in the configuration gives every layer just our masks: tried, on a few tokens."""
    config = decoder.model.config.get_text_config()
    if not hasattr(config, "sliding_window") or getattr(config, "layer_types", None) or decoder.conditional:
        return False
    tried = scratch / "sliding"
    tried.mkdir(parents=True, exist_ok=True)
    link_checkpoint(decoder.reader.folder, tried)
    _write_config(tried, decoder, _TRIED.tokens)
    expected_TT = visible(_TRIED_tokens, _TRIED)
    try:
        state = Decoder(tried, torch.device("cpu")).embed(torch.arange(_TRIED_tokens)[None])
    except UnknownArchitecture:
        return False
    masks = [arguments.get("attention_mask") for arguments in state.arguments]
    return all(mask is not None and torch.equal(_seen(mask)[0, 0], expected_TT) for mask in masks)


def _seen(mask: torch.Tensor) -> torch.Tensor:
    return mask if mask.dtype == torch.bool else mask >= 0


def _write_config(folder: Path, decoder: Decoder, window: int) -> None:
    path = folder / CONFIG
    config = json.loads(path.read_text())
    part = config.get("text_config") or config
    part["sliding_window"] = window
    path.write_text(json.dumps(config, indent=2) + "\n")


def _refused(message: str, remedy: str) -> RecipeError:
    return RecipeError(message, remedy=remedy, field="/chain")
