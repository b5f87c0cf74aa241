"""A causal language model whose decoder layers are in memory one at a time.

    decoder = Decoder(folder)
    state = decoder.embed(tokens_BT)
    for index in range(len(decoder)):
        with decoder.layer(index) as layer:
            state = decoder.forward(index, layer, state)
    logits_BTV = decoder.logits(state)

The skeleton is built by transformers on the meta device, so every architecture it knows works; embeddings, final norm
and head are read once and stay. A layer's call arguments (masks, rotary tables) are recorded from the model's own
forward with its layers replaced, so nothing about an architecture is written down here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from optcore.errors import BadCheckpoint, UnknownArchitecture
from optcore.streaming.experts import unfuse
from optcore.streaming.names import NameMap
from optcore.streaming.reader import TensorReader


class State(NamedTuple):
    """Hidden states between layers, and what every layer is called with besides them."""

    hidden_BTH: torch.Tensor
    arguments: tuple[dict[str, Any], ...]
    """Keyword arguments by layer."""


class Decoder:
    """The streaming model, on the GPU where there is one.

    It computes in float32 on the CPU, where bfloat16 rounding would drown what we measure, and in bfloat16 on a GPU.
    """

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        self.reader = TensorReader(folder)
        self.model = _skeleton(folder, self.dtype)
        unfuse(self.model)
        self.names = NameMap(self.model, self.reader.names)
        self.layers = _decoder_layers(self.model)
        self._prefix = next(name for name, module in self.model.named_modules() if module is self.layers)
        self._stored_dtype = self.reader.tensor(self.reader.names[0]).dtype
        self._load_surroundings()

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def longest_sequence(self) -> int:
        """Tokens that the model's positions reach."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**20)

    @property
    def stored_dtype(self) -> torch.dtype:
        """The type of the checkpoint's weights, in which scales are stored too."""
        return self._stored_dtype

    @property
    def embeddings(self) -> set[str]:
        """Names in the checkpoint of the tables that tokens and positions are looked up in."""
        tables = [name for name, module in self.model.named_modules() if isinstance(module, nn.Embedding)]
        return {self.names.stored_module(name) for name in tables if f"{name}.weight" in self.names.stored_name}

    def layer_name(self, index: int) -> str:
        """Module path of a layer, such as `model.layers.3`."""
        return f"{self._prefix}.{index}"

    @torch.no_grad()
    def embed(self, tokens_BT: torch.Tensor) -> State:
        """Run everything before the first layer, and record what the layers would be called with."""
        recorders = [_Recorder(layer) for layer in self.layers]
        with self._layers_replaced(recorders):
            self.model.base_model(input_ids=tokens_BT.to(self.device), use_cache=False)
        return State(recorders[0].hidden, tuple(recorder.arguments for recorder in recorders))

    @contextmanager
    def layer(self, index: int) -> Iterator[nn.Module]:
        """A decoder layer with its weights; they are dropped afterwards."""
        layer = self.layers[index]
        self._load(layer, self.layer_name(index))
        try:
            yield layer
        finally:
            layer.to("meta")

    def forward(self, index: int, layer: nn.Module, state: State, cache: Any = None) -> State:
        """One layer over the hidden states; `cache` sees keys and values as a KV cache would."""
        arguments = {**state.arguments[index], "past_key_values": cache}
        out = layer(state.hidden_BTH, **arguments)
        return state._replace(hidden_BTH=out[0] if isinstance(out, tuple) else out)

    def logits(self, state: State) -> torch.Tensor:
        """Everything after the last layer (norm, head, soft capping), by the model's own forward: [B, T, V]."""
        with self._layers_replaced([_Given(state.hidden_BTH) for _ in self.layers]):
            out: torch.Tensor = self.model(inputs_embeds=state.hidden_BTH, use_cache=False).logits
        return out

    @contextmanager
    def _layers_replaced(self, stand_ins: Sequence[nn.Module]) -> Iterator[None]:
        parent_name, _, name = self._prefix.rpartition(".")
        parent = self.model.get_submodule(parent_name)
        setattr(parent, name, nn.ModuleList(stand_ins))
        try:
            yield
        finally:
            setattr(parent, name, self.layers)

    def _load_surroundings(self) -> None:
        """Read every parameter and build every buffer outside the decoder layers."""
        inside = {id(module) for module in self.layers.modules()}
        for name, module in self.model.named_modules():
            if id(module) not in inside:
                self._load_own(module, name)
        self.model.tie_weights()
        self.model.eval()

    def _load(self, module: nn.Module, prefix: str) -> None:
        for name, child in module.named_modules():
            self._load_own(child, f"{prefix}.{name}" if name else prefix)

    def _load_own(self, module: nn.Module, name: str) -> None:
        """Fill the parameters and buffers that belong to this module itself, not to its children."""
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            module.to_empty(device=self.device, recurse=False)
            self.model._init_weights(module)  # transformers computes rotary tables here
            for key, _ in list(module.named_buffers(recurse=False)):
                stored = self.names.stored_name.get(f"{name}.{key}")
                if stored:  # such as a router's correction bias
                    setattr(module, key, self.reader.tensor(stored).to(self.device))
        for key, parameter in module.named_parameters(recurse=False):
            tensor = self._parameter(f"{name}.{key}" if name else key, parameter)
            setattr(module, key, nn.Parameter(tensor, requires_grad=False))

    def _parameter(self, name: str, expected: torch.Tensor) -> torch.Tensor:
        stored = self.names.stored_name.get(self._tied(name), self.names.stored_name.get(name))
        if stored is None:
            raise BadCheckpoint(
                f"no tensor for parameter {name}", remedy="the checkpoint is not complete", field="/model"
            )
        tensor = self.reader.tensor(stored)
        if tensor.shape != expected.shape:
            raise BadCheckpoint(
                f"{stored} has shape {tuple(tensor.shape)}, config.json asks for {tuple(expected.shape)}",
                field="/model",
            )
        return tensor.to(self.device, self.dtype)

    def _tied(self, name: str) -> str:
        """The parameter whose tensor this one shares, when the config ties embeddings."""
        if not self.model.config.get_text_config().tie_word_embeddings:
            return name
        return (self.model._tied_weights_keys or {}).get(name, name)


class _Recorder(nn.Module):
    """Stands in for a decoder layer: keeps what it is called with and passes the hidden states on."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.attention_type = getattr(layer, "attention_type", None)
        self.hidden: torch.Tensor = torch.empty(0)
        self.arguments: dict[str, Any] = {}

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        self.hidden, self.arguments = hidden_states, arguments
        return hidden_states


class _Given(nn.Module):
    """Stands in for a decoder layer: gives the hidden states that were computed elsewhere."""

    def __init__(self, hidden_BTH: torch.Tensor) -> None:
        super().__init__()
        self.hidden_BTH = hidden_BTH
        self.attention_type = None

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return self.hidden_BTH


def _skeleton(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=False, attn_implementation="sdpa"
            )
    except (ValueError, KeyError, OSError, AttributeError) as error:
        first_line = str(error).splitlines()[0]
        raise UnknownArchitecture(
            f"transformers cannot build this model: {first_line}",
            remedy="use a causal language model that the installed transformers knows",
            field="/model",
        ) from error


def _decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder layers, known by its length."""
    count = model.config.get_text_config().num_hidden_layers
    for child in model.base_model.children():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            return child
    raise UnknownArchitecture(
        f"{type(model).__name__} has no list of {count} decoder layers",
        remedy="use a decoder-only language model",
        field="/model",
    )
