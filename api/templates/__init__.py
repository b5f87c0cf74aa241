"""Recipes to start from, by purpose: one YAML file each, `title`, `description` and `recipe`."""

from functools import cache
from pathlib import Path

from lathe.models import Template
from optcore.yaml_text import read_document

_ORDER = (
    *("fit-on-8-gb", "fastest-on-h100", "near-lossless-fp8", "best-quality-4-bit", "nvfp4-or-fp8"),
    *("gguf-llama-cpp", "phone", "prune-and-distil", "speculative-draft", "air-gapped-demo"),
)
"""As people see them: what most ask for comes first."""


@cache
def templates() -> dict[str, Template]:
    """All of them, by name."""
    return {name: _load(name) for name in _ORDER}


def _load(name: str) -> Template:
    text = Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8")
    return Template.model_validate({"name": name, **read_document(text)})
