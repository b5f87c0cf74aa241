"""Whether the installed transformers can build a model at all, asked before anything is computed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from optcore.errors import BadCheckpoint, UnknownArchitecture
from optcore.report import Task
from optcore.sizes import read_header, weight_files

_LAYERS = re.compile(r"^((num|n)_(\w+_)?(layers?|blocks)|(en|de)coder_layers|depth)$")
_EXPERTS = re.compile(r"^(moe_)?(num|n)_(\w+_)?experts$")
_MOST_experts = 2**17
"""In all layers together; five times those of the largest published models."""
_COUNTS = re.compile(r"^(num|n)_(\w+_)?(labels|heads|codebooks|groups|buckets|classes|quantizers)$")
_MOST_counted = 2**17
"""Of what transformers makes an object each; labels are a dictionary before any weight is looked at."""
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""What families call the number of their layers."""
REACHES = ("max_position_embeddings", "n_positions", "max_seq_len", "model_max_length", "context_length")
"""What families call the number of their positions."""
NO_limit = 2**20
"""Tokens, where positions end nowhere."""
_MOST = 2**25
"""Of any number but a rotary base: three times the longest positions that a published model reaches. Tables of
positions and frequencies are computed while a skeleton is built, before weights can contradict the config."""


class _Contents(NamedTuple):
    """What the weight files' headers say."""

    tensors: int
    numbered: int
    """One more than the largest number in a tensor's name, such as an expert's."""
    stacked: int
    """The largest first dimension of a 3-D tensor, which may stand for experts."""


def check_architecture(folder: Path) -> None:
    """Raises `UnknownArchitecture` for a config that names no language model that can be streamed, `BadCheckpoint`
    for no config, or for one that describes a model of another size than the weights."""
    config = _config(folder)
    if "quantization_config" in config:
        raise BadCheckpoint(
            "the model is quantized already", remedy="start from its high-precision original", field="/model"
        )
    _check_known(config)
    _check_numbers(dict(_integers(config)), _contents(folder))


def longest_sequence(folder: Path) -> int:
    """Tokens that the model's positions reach: by its config, or where they are learned by the table's use."""
    if any(name.endswith("position_embeddings.weight") for path in weight_files(folder) for name in read_header(path)):
        import torch

        from optcore.streaming.skeleton import longest_sequence_of, skeleton

        return longest_sequence_of(skeleton(folder, torch.float32))
    return positions(_config(folder)) or NO_limit


def layer_count(config: dict[str, Any]) -> int | None:
    """Decoder layers that a config counts; None where it says nothing."""
    text = {**config, **(config.get("text_config") or {})}
    return next((text[name] for name in _DEPTHS if isinstance(text.get(name), int)), None)


def positions(config: dict[str, Any]) -> int | None:
    """Tokens that a config says its positions reach; None where it says nothing."""
    text = {**config, **(config.get("text_config") or {})}
    return next((int(text[name]) for name in REACHES if text.get(name)), None)


def task_of(folder: Path) -> Task:
    """What the model in a folder is for, by its config."""
    config = _config(folder)
    if not is_encoder(config):
        return "text-generation"
    return "text-classification" if is_classifier(config) else "fill-mask"


def is_classifier(config: dict[str, Any]) -> bool:
    """Whether a config describes a BERT-style encoder whose head labels whole texts."""
    named = config.get("architectures") or ()
    return is_encoder(config) and any(str(name).endswith("ForSequenceClassification") for name in named)


def is_encoder(config: dict[str, Any]) -> bool:
    """Whether a config describes a BERT-style encoder with a head, rather than a decoder."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    model_type, named = config.get("model_type"), config.get("architectures") or ()
    if model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return False
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return True
    return not config.get("is_decoder") and MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type] not in named


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        if isinstance(config["model_type"], str):
            return config
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _no_config() from error
    raise _no_config()


def _no_config() -> BadCheckpoint:
    return BadCheckpoint(
        "config.json is not a model's configuration", remedy="it must be JSON with a `model_type`", field="/model"
    )


def _check_known(config: dict[str, Any]) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    model_type = config["model_type"]
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not is_encoder(config):
        raise UnknownArchitecture(
            f"model_type {model_type!r} is neither a causal nor a masked language model that the installed"
            " transformers knows",
            remedy="use a decoder-only language model or a BERT-style encoder; custom code is not run",
            field="/model",
        )
    if config.get("is_encoder_decoder"):
        raise UnknownArchitecture(
            f"{model_type} is an encoder with a decoder",
            remedy="use a decoder-only language model or a BERT-style encoder",
            field="/model",
        )


def _contents(folder: Path) -> _Contents:
    tensors, numbered, stacked = 0, 0, 0
    for path in weight_files(folder):
        for name, facts in read_header(path).items():
            shape = facts.get("shape")
            tensors += 1
            numbered = max([numbered, *(int(part) + 1 for part in name.split(".") if part.isdigit() and len(part) < 9)])
            if isinstance(shape, list) and len(shape) == 3 and all(isinstance(n, int) and n > 0 for n in shape):
                stacked = max(stacked, shape[0])
    return _Contents(tensors, numbered, stacked)


def _integers(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Names and values of all integers, those of nested configurations included."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _integers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield name, value


def _check_numbers(numbers: dict[str, int], contents: _Contents) -> None:
    """Refuse numbers that the weights contradict: a skeleton of a million layers would take all memory and hours."""
    layers = max((value for name, value in numbers.items() if _LAYERS.search(name)), default=1)
    for name, value in numbers.items():
        if _LAYERS.search(name):
            _check_bound(name, value, contents.tensors)
        elif _EXPERTS.search(name):
            _check_bound(name, value, min(max(contents.numbered, contents.stacked), _MOST_experts // max(layers, 1)))
        elif _COUNTS.search(name):
            _check_bound(name, value, _MOST_counted)
        elif "theta" not in name:
            _check_bound(name, value, _MOST)


def _check_bound(name: str, value: int, most: int) -> None:
    if value > most:
        raise BadCheckpoint(
            f"config.json has {name} = {value}, but {most} is the most that these weights allow",
            remedy="weights and config.json must be of the same model",
            field="/model",
        )
