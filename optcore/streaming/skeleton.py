"""A model on the meta device: every module and shape, no weights."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from optcore.architecture import NO_limit, is_classifier, is_encoder
from optcore.errors import UnknownArchitecture
from optcore.out_of_memory import is_out_of_memory
from optcore.streaming.experts import unfuse

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def skeleton(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Build the model that config.json describes, its experts taken apart. Raises `UnknownArchitecture`."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            model = _model(config, dtype)
    except (
        ValueError,
        KeyError,
        OSError,
        AttributeError,
        TypeError,
        ImportError,
        RuntimeError,
        StrictDataclassError,
    ) as error:
        if is_out_of_memory(error):
            raise
        said = str(error.__cause__ if isinstance(error, StrictDataclassError) else error)
        first_line = next(iter(said.splitlines()), type(error).__name__)
        raise UnknownArchitecture(
            f"transformers cannot build this model: {first_line}",
            remedy="use a causal or masked language model that the installed transformers knows",
            field="/model",
        ) from error
    unfuse(model)
    return model


def layers_of(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The path and the list of the repeated layers, known by its length, wherever in the language model it lies."""
    count = model.config.get_text_config().num_hidden_layers
    language_model = model.get_decoder() or model  # vision towers are lists of layers too
    for name, module in [*_lists(model, language_model), *_lists(model, model)]:
        if len(module) == count and _are_alike(module):
            _check(model, module)
            return name, module
    raise UnknownArchitecture(
        f"{type(model).__name__} has no list of {count} layers that could be streamed",
        remedy="use a decoder-only language model, or a BERT-style encoder",
        field="/model",
    )


def longest_sequence_of(model: PreTrainedModel) -> int:
    """Tokens that the model's positions reach."""
    longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or NO_limit)
    for name, module in model.named_modules():
        is_table = name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
        if is_table and module.padding_idx is not None:
            longest = min(longest, module.num_embeddings - module.padding_idx - 1)  # RoBERTa counts from there
    return longest


def _lists(model: PreTrainedModel, part: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Lists of modules in a part of the model, by their path in the whole."""
    inside = {id(module) for module in part.modules()}
    return [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and id(m) in inside]


def _model(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    build: Any = _kind(config.to_dict()).from_config
    try:
        return build(config, dtype=dtype, trust_remote_code=False, attn_implementation="sdpa")
    except ValueError as error:
        if "attention" not in str(error):
            raise
        return build(config, dtype=dtype, trust_remote_code=False, attn_implementation="eager")


def _kind(config: dict[str, Any]) -> Any:
    if is_classifier(config):
        return AutoModelForSequenceClassification
    return AutoModelForMaskedLM if is_encoder(config) else AutoModelForCausalLM


def _are_alike(layers: nn.ModuleList) -> bool:
    """Decoder layers have attention or a mixer with several children; lists of norms or linears do not."""
    return all(len(list(layer.children())) > 1 for layer in layers)


def _check(model: PreTrainedModel, layers: nn.ModuleList) -> None:
    """Refuse what would end as a checkpoint that is silently not quantized."""
    if not any(isinstance(module, nn.Linear) for module in layers.modules()):
        raise UnknownArchitecture(
            f"{type(model).__name__} has no linear layers in its decoder, but modules of its own kind",
            remedy="use a model whose projections are linear layers (GPT-2's are not)",
            field="/model",
        )
    for path, module in layers.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 2 and not isinstance(module, _CONVOLUTIONS):
                raise UnknownArchitecture(
                    f"{type(model).__name__} fuses matrices into {path}.{name} in a way that we cannot take apart",
                    remedy="use an architecture whose experts transformers describes (their layout and gate)",
                    field="/model",
                )
