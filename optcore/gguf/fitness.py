"""Which models have a place in a GGUF file, by their configuration and tokenizer alone."""

import json
from pathlib import Path

from optcore.conditional import check_unconditional
from optcore.errors import RecipeError
from optcore.report import Task


def check_model(folder: Path, task: Task, place: str) -> None:
    """Raises `RecipeError` for a model that llama.cpp would not know, or would compute otherwise."""
    from optcore.gguf.architectures import architecture_of
    from optcore.gguf.rope import rope_of
    from optcore.gguf.tokenizer import check_tokenizer, read_vocabulary

    field = f"{place}/format"
    if task != "text-generation":
        raise RecipeError(
            f"GGUF is written for models that generate text, and {folder.name} is one for {task}",
            remedy="use `target: {format: onnx}`, which ONNX Runtime runs",
            field=field,
        )
    config = json.loads((folder / "config.json").read_text())
    architecture_of(config, field)
    rope_of(config, field)
    check_tokenizer(folder, field)
    read_vocabulary(folder, config)
    check_unconditional(folder, "llama.cpp", field)
