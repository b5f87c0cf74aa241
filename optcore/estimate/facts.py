"""What a cost depends on of a model, from its configuration and the headers of its weights: no weight is read."""

import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from optcore.architecture import REACHES, NO_limit
from optcore.errors import BadCheckpoint
from optcore.frozen import Frozen
from optcore.mixes import Anatomy, anatomy
from optcore.sizes import MOST_tensors, read_header, weight_files
from optcore.targets import EXPERT_COUNTS

Role = Literal["embedding", "head", "linear", "router", "other"]

_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")
_EMBEDDING = re.compile(r"(embed\w*|wte|wpe|word_embeddings|tok_embeddings)\.weight$")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output|decoder|classifier|score)\.(weight|dense\.weight)$")
_ROUTER = re.compile(r"\.(router|gate|shared_expert_gate|router\.layer|classifier)(\.weight|\.wg\.weight)$")
_NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model", "dim"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocabulary": ("vocab_size",),
    "positions": REACHES,
    "intermediate": ("intermediate_size", "ffn_dim", "n_inner", "moe_intermediate_size"),
    "experts": EXPERT_COUNTS,
    "experts_chosen": ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "top_k"),
}
_MOST_layers = 10_000
"""A header is anybody's, and what is reckoned walks over them."""
_MOST_count, _MOST_size, _MOST_axes = 2**31, 2**40, 8
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
"""Of an element, by safetensors' name of its type; any other takes one."""


class Tensor(NamedTuple):
    """One tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    itemsize: int
    """Bytes of an element."""
    layer: int
    """Number of the decoder layer, -1 outside of them."""
    role: Role

    @property
    def elements(self) -> int:
        """Values in it."""
        return prod(self.shape)

    @property
    def matrix(self) -> tuple[int, int]:
        """Outputs and inputs; of the experts in one tensor those of each."""
        return self.shape[-2], self.shape[-1]

    @property
    def copies(self) -> int:
        """Matrices in it."""
        return prod(self.shape[:-2])

    @property
    def module(self) -> str:
        """The linear layer that it is the weight of."""
        return self.name.removesuffix(".weight")


class ModelFacts(Frozen):
    """A model by its shapes."""

    model_type: str = ""
    hidden: int = Field(ge=1)
    vocabulary: int = Field(ge=1)
    positions: int = NO_limit
    heads: int = 1
    kv_heads: int = 1
    head_dim: int = 1
    intermediate: int = 1
    experts: int = 0
    """Routed experts of a layer; 0 in a dense model."""
    experts_chosen: int = 0
    """That a token is given to."""
    tied: bool = False
    """Whether the head has no tensor of its own."""
    is_encoder: bool = False
    is_known: bool = True
    """False where the configuration says too little to trust formulas."""
    config: dict[str, Any] = Field(default={}, repr=False)
    tensors: tuple[Tensor, ...] = Field(repr=False)

    @cached_property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    @cached_property
    def weight_bytes(self) -> int:
        """Of all tensors, without the files' headers."""
        return sum(tensor.elements * tensor.itemsize for tensor in self.tensors)

    @cached_property
    def layers(self) -> int:
        """Repeated ones."""
        return max((tensor.layer for tensor in self.tensors), default=-1) + 1

    @cached_property
    def layer_parameters(self) -> tuple[int, ...]:
        """Of each layer."""
        sums = [0] * self.layers
        for tensor in self.tensors:
            if tensor.layer >= 0:
                sums[tensor.layer] += tensor.elements
        return tuple(sums)

    @property
    def largest_layer(self) -> int:
        """Parameters of the layer that has most."""
        return max(self.layer_parameters, default=0)

    @cached_property
    def outside(self) -> int:
        """Parameters of no layer: embeddings, final norm, head."""
        return self.parameters - sum(self.layer_parameters)

    @cached_property
    def linears(self) -> tuple[Tensor, ...]:
        """Weights of the linear layers in the decoder layers, which quantization is about."""
        return tuple(tensor for tensor in self.tensors if tensor.role == "linear")

    @cached_property
    def active(self) -> int:
        """Values of the layers' matrices that a token is multiplied with."""
        share = self.experts_chosen / self.experts if self.experts and self.experts_chosen else 1.0
        return round(sum(one.elements * (share if is_expert(one) else 1.0) for one in self.linears))

    @property
    def bytes_a_value(self) -> float:
        """Of the checkpoint as it is stored, in the mean."""
        return self.weight_bytes / max(1, self.parameters)

    @property
    def key_values(self) -> int:
        """Numbers that a token leaves in a cache of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def anatomy(self) -> Anatomy:
        """What mixes of block formats ask of a model."""
        return anatomy(self.config, self.layers)

    def with_tensors(self, tensors: Iterable[Tensor], **changed: object) -> "ModelFacts":
        """The same model with others."""
        known = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_construct(**{**known, **changed, "tensors": tuple(tensors)})


def is_expert(tensor: Tensor) -> bool:
    """Whether it belongs to routed experts, of which a token meets some."""
    return ".experts." in tensor.name and tensor.role == "linear"


def from_headers(config: Mapping[str, Any], tensors: Mapping[str, tuple[tuple[int, ...], str]]) -> ModelFacts:
    """Of headers that were obtained elsewhere: shape and safetensors' name of the type, by tensor.

    Raises `BadCheckpoint` where there is no matrix among them, and for numbers that no model has.
    """
    if len(tensors) > MOST_tensors:
        raise BadCheckpoint(f"the headers name {len(tensors)} tensors, more than {MOST_tensors}", field="/model")
    text, kinds = _text(config), " ".join(map(str, config.get("architectures") or ()))
    found = tensors_of(tensors)
    table = max((one for one in found if len(one.shape) == 2 and one.layer < 0), key=_elements, default=None)
    if table is None or not table.elements:
        raise BadCheckpoint("the headers name no table of embeddings", field="/model")
    hidden = _number(text, "hidden") or min(table.shape)
    heads, experts = _number(text, "heads") or 1, _number(text, "experts") or 0
    return ModelFacts(
        model_type=str(config.get("model_type", "")),
        hidden=hidden,
        vocabulary=_number(text, "vocabulary") or max(table.shape),
        positions=_number(text, "positions") or NO_limit,
        heads=heads,
        kv_heads=_number(text, "kv_heads") or heads,
        head_dim=_number(text, "head_dim") or max(1, hidden // heads),
        intermediate=_number(text, "intermediate") or 4 * hidden,
        experts=experts if experts > 1 else 0,
        experts_chosen=(_number(text, "experts_chosen") or 0) if experts > 1 else 0,
        tied=not any(one.role == "head" for one in found),
        is_encoder="ForMaskedLM" in kinds or "ForSequenceClassification" in kinds,
        is_known=_number(text, "hidden") is not None and any(one.role == "linear" for one in found),
        config=dict(config),
        tensors=found,
    )


def tensors_of(headers: Mapping[str, tuple[tuple[int, ...], str]]) -> tuple[Tensor, ...]:
    """What each tensor is, by its name and shape. Raises `BadCheckpoint` for shapes that no tensor has."""
    return tuple(_tensor(name, shape, dtype) for name, (shape, dtype) in headers.items())


def from_folder(folder: Path) -> ModelFacts:
    """Of a model on this machine. Raises `BadCheckpoint` for what is none."""
    try:
        config = json.loads((folder / "config.json").read_text())
        headers = [read_header(path) for path in weight_files(folder)]
    except (OSError, ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{folder.name} is not a model's folder: {error}", field="/model") from error
    if not isinstance(config, dict):
        raise BadCheckpoint("config.json is not a model's configuration", field="/model")
    tensors: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, about in (pair for header in headers for pair in header.items()):
        if not isinstance(about, dict) or not isinstance(shape := about.get("shape"), list):
            raise BadCheckpoint(f"{folder.name} has a damaged header", field="/model")
        tensors[name] = (tuple(shape), str(about.get("dtype")))
    return from_headers(config, tensors)


def _text(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with that of its language model on top."""
    text, kinds = config.get("text_config") or {}, config.get("architectures") or []
    if not isinstance(text, dict) or not isinstance(kinds, list):
        raise BadCheckpoint("config.json has `text_config` or `architectures` of no model's form", field="/model")
    return {**config, **text}


def _tensor(name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    sizes = tuple(shape)
    if len(sizes) > _MOST_axes or not all(isinstance(size, int) and 0 <= size < _MOST_size for size in sizes):
        raise BadCheckpoint(f"tensor {name:.100} has no tensor's shape", field="/model")
    layer = _layer(name)
    return Tensor(name, sizes, _BYTES.get(dtype, 1), layer, _role(name, sizes, layer))


def _layer(name: str) -> int:
    number = _NUMBER.search(name)
    if number is None:
        return -1
    if len(number[1]) >= len(str(_MOST_layers)):
        raise BadCheckpoint(f"tensor {name:.100} is of a layer beyond the first {_MOST_layers}", field="/model")
    return int(number[1])


def _role(name: str, shape: tuple[int, ...], layer: int) -> Role:
    if len(shape) < 2:
        return "other"
    if layer < 0:
        return "embedding" if _EMBEDDING.search(name) else "head" if _HEAD.search(name) else "other"
    if _ROUTER.search(name):
        return "router"
    is_matrix = len(shape) == 2 or (len(shape) == 3 and min(shape[-2:]) > 4)  # a convolution's kernel is a narrow one
    return "linear" if is_matrix and not name.endswith("bias") else "other"


def _number(text: Mapping[str, Any], what: str) -> int | None:
    """The first that a configuration gives; a list, of one for each layer, is none of the model.

    Raises `BadCheckpoint` for anything else, which the engine could not build a model of either.
    """
    for key in _NAMES[what]:
        value = text.get(key)
        if value is None or isinstance(value, list):
            continue
        is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if not is_whole or not 0 <= value < _MOST_count:
            raise BadCheckpoint(f"config.json has a `{key}` that is no count", field="/model")
        if value:
            return int(value)
    return None


def _elements(tensor: Tensor) -> int:
    return tensor.elements
