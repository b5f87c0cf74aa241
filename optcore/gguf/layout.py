"""Which tensors a GGUF file has, of which types, and from which of the checkpoint's each is made."""

import re
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import gguf

from optcore.errors import RecipeError
from optcore.gguf.architectures import Architecture, Config, head_width
from optcore.gguf.blocks import TYPES
from optcore.gguf.weights import Weights

_EXPERT = re.compile(r"(?P<folder>.*\.experts)\.(?P<number>\d+)\.(?P<rest>.*)")
_BUFFERS = ("rotary_emb.inv_freq",)
"""Ends of names of what llama.cpp computes by itself."""
_BLOCK = re.compile(r"blk\.(\d+)\.(.*)")


class Entry(NamedTuple):
    """One tensor of the file."""

    name: str
    type: str
    """ggml's name, such as `Q4_K`."""
    shape: tuple[int, ...]
    """Outputs first, before these the experts: the file counts its dimensions the other way round."""
    sources: tuple[str, ...]
    """Names in the checkpoint: one, or one for each expert."""
    is_scale: bool = False
    """Whether these are NVFP4's second scales of the sources, not their values."""

    @property
    def ggml_type(self) -> gguf.GGMLQuantizationType:
        """The type as gguf numbers it."""
        return gguf.GGMLQuantizationType[self.type]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        elements, octets = gguf.GGML_QUANT_SIZES[self.ggml_type]
        return prod(self.shape) // elements * octets

    @property
    def has_experts(self) -> bool:
        """Whether each source is a slice."""
        return "_exps." in self.name


def lay_out(weights: Weights, config: Config, architecture: Architecture, plain: str) -> list[Entry]:
    """Every tensor of the file. Raises `RecipeError` for a checkpoint that the architecture has no place for."""
    sources: dict[str, list[str]] = {}
    for stored, name in _named(weights, config, architecture):
        sources.setdefault(name, []).append(stored)
    entries = []
    for name, of in sources.items():
        entry = _entry(weights, name, tuple(of), plain)
        entries.append(entry)
        if entry.type == "NVFP4":
            shape = (len(of),) if entry.has_experts else (1,)
            entries.append(Entry(name.replace(".weight", ".scale"), "F32", shape, entry.sources, is_scale=True))
    _check_layers(entries, int(config["num_hidden_layers"]))
    return entries


def gguf_names(architecture: Architecture, layers: int) -> gguf.TensorNameMap:
    """gguf's map from names of transformers to its own."""
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(numbers[architecture.name], layers)


def gguf_name(names: gguf.TensorNameMap, stored: str) -> str | None:
    """The file's name of a checkpoint's tensor; experts of a layer share one."""
    expert = _EXPERT.fullmatch(stored)
    shared = f"{expert['folder']}.{expert['rest']}" if expert else stored
    found: str | None = names.get_name(shared, try_suffixes=(".weight", ".bias"))
    return found


def expert_number(stored: str) -> int:
    """Of an expert's tensor or module; 0 for all others."""
    expert = _EXPERT.fullmatch(stored)
    return int(expert["number"]) if expert else 0


def rotated_heads(stored: str, config: Config, architecture: Architecture) -> tuple[int, int] | None:
    """Heads, and the width of one, of a tensor whose rows are put in llama.cpp's order; None for all others."""
    if not architecture.rotates_neighbours:
        return None
    heads = int(config["num_attention_heads"])
    if ".q_proj." in stored:
        return heads, head_width(config)
    return (int(config.get("num_key_value_heads") or heads), head_width(config)) if ".k_proj." in stored else None


def check_blocks(name: str, scheme: str, inputs: int, field: str = "/target/format") -> None:
    """Raises `RecipeError` for a tensor whose rows are no whole number of the blocks that hold its scheme."""
    elements, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[TYPES[scheme]]]
    if inputs % elements:
        raise RecipeError(
            f"{name} has {inputs} inputs, and {TYPES[scheme]} stores {elements} together",
            remedy="`ignore` this layer, or choose a format with smaller blocks such as `q8_0`",
            field=field,
        )


def _named(weights: Weights, config: Config, architecture: Architecture) -> Iterator[tuple[str, str]]:
    """Every tensor of the checkpoint that is written, experts in their order, with its name in the file."""
    names = gguf_names(architecture, int(config["num_hidden_layers"]))
    is_tied = config.get("tie_word_embeddings", architecture.norms_from_one)
    for stored in sorted(weights.names, key=expert_number):
        if stored.endswith(_BUFFERS) or (stored == "lm_head.weight" and is_tied and not weights.scheme(stored)):
            continue
        if (name := gguf_name(names, stored)) is None:
            raise _refused(f"llama.cpp's {architecture.name} has no tensor like {stored}")
        yield stored, name


def _entry(weights: Weights, name: str, sources: tuple[str, ...], plain: str) -> Entry:
    shapes = {weights.shape(source) for source in sources}
    schemes = {weights.scheme(source) for source in sources}
    if len(shapes) > 1 or len(schemes) > 1:
        raise _refused(
            f"GGUF holds all experts of a layer in one tensor, and those of {name} differ in shape or format"
        )
    (shape,), (scheme,) = shapes, schemes
    has_vectors = len(shape) == 1 or "ffn_gate_inp" in name  # a router is small, and decides much
    type_ = TYPES[scheme] if scheme else "F32" if has_vectors else plain.upper()
    if scheme:
        check_blocks(sources[0], scheme, shape[-1])
    entry = Entry(name, type_, shape, sources)
    return entry._replace(shape=(len(sources), *shape)) if entry.has_experts else entry


def _check_layers(entries: list[Entry], layers: int) -> None:
    """llama.cpp reads one size for all layers: each must have the same tensors in the same shapes."""
    found: dict[int, dict[str, tuple[int, ...]]] = {number: {} for number in range(layers)}
    for entry in entries:
        if (match := _BLOCK.fullmatch(entry.name)) and not entry.is_scale:
            found[int(match[1])][match[2]] = entry.shape
    for number, shapes in found.items():
        if shapes != found[0]:
            odd = sorted(set(shapes.items()) ^ set(found[0].items()))[0][0]
            raise _refused(f"layer {number} differs from layer 0 in {odd}, and llama.cpp reads one size for all layers")


def _refused(message: str) -> RecipeError:
    return RecipeError(message, remedy="choose `compressed-tensors` or `dense`", field="/target/format")
