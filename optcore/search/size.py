"""What a chain's result will weigh, from the headers of the model's files: known before any work.

What shrinks a model in another way than pruning by depth or by number formats has no size before it is done.
"""

import re
from collections.abc import Mapping
from math import ceil, prod
from pathlib import Path
from typing import Any, NamedTuple

from optcore.mixes import MIXES, anatomy, base_of, fitting, resolved
from optcore.recipe import Recipe
from optcore.schemes import PRESETS, HIGH_PRECISION_bits, stored_bits
from optcore.sizes import read_header, weight_files
from optcore.tables import tables
from optcore.techniques import AutoQuantize, Prune, Ptq, Technique
from optcore.techniques.dense_training import DenseTraining
from optcore.techniques.quantization_aware import QuantizationAware

Shapes = dict[str, tuple[int, ...]]

_LAYER = re.compile(r"\.(\d+)\.")
_ROUTER = re.compile(r"\.(gate|router)\.weight$")
_EMBEDDING = re.compile(r"(embed_tokens|wte|word_embeddings|embeddings?)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")


def read_shapes(folder: Path) -> Shapes:
    """Of every tensor of a checkpoint, by name."""
    headers = [read_header(path) for path in weight_files(folder)]
    return {name: tuple(facts["shape"]) for header in headers for name, facts in header.items()}  # type: ignore[arg-type]


class Weight(NamedTuple):
    """Of a result."""

    size: int
    """Bytes, without the files' own headers."""
    parameters: int


def predicted(recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]) -> Weight | None:
    """What the result's weights take; None where the chain leaves it open.

    A target in 16 bits holds 16 bits of everything.
    """
    left, formats = dict(shapes), dict[str, float]()
    for technique in recipe.chain:
        found = _left(technique, left)
        if found is None:
            return None
        left = found
        if isinstance(technique, AutoQuantize) or (
            isinstance(technique, Ptq) and (technique.ignore or technique.overrides)
        ):
            return None
        if isinstance(technique, Ptq):
            formats = _bits(technique, left, config)
    if recipe.target.format == "compact":  # as small as the values let it
        return None
    if recipe.target.format == "dense":
        formats = {}
    full = {name: prod(shape) * HIGH_PRECISION_bits for name, shape in left.items()}
    return Weight(ceil(sum((full | formats).values()) / 8), sum(map(prod, left.values())))


def _left(technique: Technique, shapes: Shapes) -> Shapes | None:
    """The tensors after an entry of the chain."""
    if technique.stands_beside or isinstance(technique, Ptq | QuantizationAware):
        return shapes
    if isinstance(technique, DenseTraining) and technique.keeps_sizes:
        return shapes
    if not isinstance(technique, Prune) or technique.target or technique.cuts or technique.experts:
        return None
    numbers = [_number(name) for name in shapes]
    depth = 1 + max((number for number in numbers if number is not None), default=-1) - technique.depth
    return {name: shape for name, shape in shapes.items() if (number := _number(name)) is None or number < depth}


def _number(name: str) -> int | None:
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def _bits(technique: Ptq, shapes: Shapes, config: Mapping[str, Any]) -> dict[str, float]:
    """Of each matrix that gets codes: linear layers of the decoder, and tables where the format is one for them too."""
    linears = {name: shape for name, shape in shapes.items() if _is_linear(name, shape)}
    named = _formats(technique.scheme, linears, config)
    found = {name: _stored(named[name], shape) for name, shape in linears.items() if name in named}
    return found | _of_tables(technique, shapes, config)


def _formats(scheme: str, linears: Shapes, config: Mapping[str, Any]) -> dict[str, str]:
    modules = {name.removesuffix(".weight"): name for name in linears}
    depth = 1 + max((number for name in linears if (number := _number(name)) is not None), default=0)
    mixed = resolved(MIXES[scheme], list(modules), anatomy(config, depth)) if scheme in MIXES else {}
    asked = {name: mixed.get(module, base_of(scheme)) for module, name in modules.items()}
    fit = {name: fitting(found, linears[name][-1]) for name, found in asked.items()}
    return {name: found for name, found in fit.items() if found}


def _of_tables(technique: Ptq, shapes: Shapes, config: Mapping[str, Any]) -> dict[str, float]:
    formats = tables(technique.tables, technique.scheme, str(config.get("model_type", "")))
    heads = [name for name in shapes if _HEAD.search(name)]
    embedding = formats.embedding if heads else formats.head
    asked = {name: embedding for name in shapes if _EMBEDDING.search(name)} | dict.fromkeys(heads, formats.head)
    fit = {name: fitting(found, shapes[name][-1]) for name, found in asked.items() if found}
    return {name: _stored(found, shapes[name]) for name, found in fit.items() if found}


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and _number(name) is not None and not _ROUTER.search(name)


def _stored(scheme: str, shape: tuple[int, ...]) -> float:
    """Bits of a matrix, or of each expert's in one tensor."""
    rows, columns = shape[-2:]
    return prod(shape[:-2]) * stored_bits(PRESETS[scheme].weights, (rows, columns))
