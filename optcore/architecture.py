"""Whether the installed transformers can build a model at all, asked before anything is computed."""

import json
from pathlib import Path
from typing import Any

from optcore.errors import BadCheckpoint, UnknownArchitecture


def check_architecture(folder: Path) -> None:
    """Raises `UnknownArchitecture` for a config that names no causal language model, `BadCheckpoint` for no config."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config = json.loads((folder / "config.json").read_text())
        model_type = config["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadCheckpoint(
            "config.json is not a model's configuration", remedy="it must be JSON with a `model_type`", field="/model"
        ) from error
    if "quantization_config" in config:
        raise BadCheckpoint(
            "the model is quantized already", remedy="start from its high-precision original", field="/model"
        )
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnknownArchitecture(
            f"model_type {model_type!r} is not a causal language model that the installed transformers knows",
            remedy="use a decoder-only language model; custom code is not run",
            field="/model",
        )


def is_masked_language_model(config: dict[str, Any]) -> bool:
    """Whether a config describes a BERT-style encoder with its head, rather than a decoder."""
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
