"""A language model whose layers are in memory one at a time.

    decoder = Decoder(folder)
    state = decoder.embed(tokens_BT)
    for index in range(len(decoder)):
        with decoder.layer(index) as layer:
            state = decoder.forward(index, layer, state)
    logits_BTV = decoder.logits(state)

The skeleton is built by transformers on the meta device, so every architecture it knows works, decoders and BERT-style
encoders alike; embeddings, final norm and head are read once and stay. A layer's call arguments (masks, rotary tables)
are recorded from the model's own forward with its layers replaced, so nothing about an architecture is written here.
A model with a `conditional.json` is streamed as that says: its window is in the masks, its thresholds in the layers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optcore.conditional import SparseInput, load_conditional
from optcore.errors import RecipeError, UnknownArchitecture
from optcore.out_of_memory import is_out_of_memory
from optcore.streaming.conditions import check_conditions, masked, thresholded
from optcore.streaming.exits import leaving
from optcore.streaming.memory import return_free_memory
from optcore.streaming.names import NameMap
from optcore.streaming.reader import TensorReader
from optcore.streaming.skeleton import layers_of, longest_sequence_of, skeleton
from optcore.streaming.stand_ins import Given, Recorder, State
from optcore.streaming.weights import Weights

__all__ = ["Decoder", "State"]

Freezing = Callable[[int, State], torch.Tensor]
"""Given a layer's number and the state after it, which tokens leave there, bool [B, T]."""

_CACHES = ("past_key_values", "past_key_value", "layer_past")
"""What layers call the cache that they are given."""


class Decoder:
    """The streaming model, on the GPU where there is one.

    It computes in float32 on the CPU, where bfloat16 rounding would drown what we measure, and in bfloat16 on a GPU,
    unless `dtype` says otherwise.
    Raises `BadCheckpoint` for a checkpoint that lacks a parameter or has it in another shape, before any is read.
    """

    def __init__(self, folder: Path, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.bfloat16)
        self.reader = TensorReader(folder)
        self.model = skeleton(folder, self.dtype).eval()
        self.names = NameMap(self.model, self.reader.names)
        self._prefix, self.layers = layers_of(self.model)
        self._weights = Weights(self.model, self.reader, self.names, self.device, self.dtype, self._prefix)
        self._returns_tuple = False
        self.freezing: Freezing | None = None
        """What decides which tokens leave after a layer; None where all go through all layers."""
        self.conditional = load_conditional(folder)
        if self.conditional:
            check_conditions(self.conditional, self._own_modules.keys(), len(self.layers))
            if exits := self.conditional.early_exit:
                self.freezing = leaving(self.logits, exits.layers, exits.threshold)
        self._weights.load_outside()

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def longest_sequence(self) -> int:
        """Tokens that the model's positions reach."""
        return longest_sequence_of(self.model)

    @property
    def is_causal(self) -> bool:
        """Whether logits at a position predict the next token; a masked language model's predict its own."""
        return "MaskedLM" not in type(self.model).__name__ and not self.is_classifier

    @property
    def is_classifier(self) -> bool:
        """Whether logits are of labels of a whole text, [B, labels], rather than of tokens."""
        return type(self.model).__name__.endswith("ForSequenceClassification")

    @property
    def stored_dtype(self) -> torch.dtype:
        """The type of most of the checkpoint's bytes, in which scales are stored too."""
        sizes: dict[torch.dtype, int] = {}
        for name in self.reader.names:
            dtype = self.reader.dtype(name)
            sizes[dtype] = sizes.get(dtype, 0) + self.reader.nbytes(name)
        return max(sizes, key=lambda dtype: sizes[dtype])

    @property
    def embeddings(self) -> set[str]:
        """Names in the checkpoint of the tables that tokens and positions are looked up in."""
        tables = [name for name, module in self.model.named_modules() if isinstance(module, nn.Embedding)]
        return {self.names.stored_module(name) for name in tables if f"{name}.weight" in self.names.stored_name}

    @property
    def tied_linears(self) -> list[str]:
        """Linear modules outside the layers without a tensor of their own: a head that is tied to the embeddings."""
        inside = f"{self._prefix}."
        outside = {name: module for name, module in self.model.named_modules() if not name.startswith(inside)}
        names = (name for name, module in outside.items() if isinstance(module, nn.Linear))
        return [name for name in names if f"{name}.weight" not in self.names.stored_name]

    def tied_copies(self, stored: str) -> list[str]:
        """Names of further tensors in the checkpoint that the configuration says are the same as one of them."""
        if not self.model.config.get_text_config().tie_word_embeddings:
            return []
        own = self.names.stored_name
        tied = (self.model._tied_weights_keys or {}).items()
        return [own[copy] for copy, first in tied if copy in own and own.get(first) == stored]

    def layer_name(self, index: int) -> str:
        """Module path of a layer, such as `model.layers.3`."""
        return f"{self._prefix}.{index}"

    def has_key_value_cache(self, index: int) -> bool:
        """Whether a layer keeps keys and values; hybrid models have layers with a recurrent state instead."""
        kinds = getattr(self.model.config.get_text_config(), "layer_types", None)
        if not self.is_causal or not kinds:
            return self.is_causal
        kind = kinds[index]  # `hybrid` is attention and a recurrent state side by side
        return kind == "hybrid" or ("attention" in kind and "linear" not in kind)

    def stored_tensors(self, index: int, quantized: Sequence[str] = ()) -> dict[str, torch.Tensor]:
        """A layer's tensors as stored, by name; only within `layer(index, keep_stored=True)`.

        Weights of `quantized` modules (checkpoint names) are left out. Where the checkpoint has all experts of a layer
        in one tensor and one of them is quantized, they come expert by expert, under the names that engines know.
        """
        return self._weights.stored(index, frozenset(quantized))

    def outside_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor that belongs to no layer, as stored: embeddings, final norm, head, and what no module takes.

        Nothing is read twice, so all layers and these are exactly one read of the checkpoint.
        """
        return self._weights.outside()

    @torch.no_grad()
    def embed(self, tokens_BT: torch.Tensor, **named: torch.Tensor) -> State:
        """Run everything before the first layer, and record what the layers would be called with.

        `named` is what else the model is given, such as `position_ids`.
        """
        for returns_tuple in (self._returns_tuple, not self._returns_tuple):
            recorders = [Recorder(layer, returns_tuple) for layer in self.layers]
            if self._recorded(recorders, tokens_BT, named):
                self._returns_tuple = returns_tuple
                return State(recorders[0].hidden, self._arguments(recorders, tokens_BT.shape[1]))
        raise self._cannot_stream("its layers are not called one after the other, each with what the last one gave")

    @contextmanager
    def layer(self, index: int, *, keep_stored: bool = False) -> Iterator[nn.Module]:
        """A layer with its weights; they are dropped afterwards. `keep_stored` keeps the tensors as stored beside."""
        layer = self.layers[index]
        self._weights.load_layer(index, keep_stored=keep_stored)
        try:
            with thresholded(layer, self._sparse_inputs(index)):
                yield layer
        finally:
            layer.to("meta")
            self._weights.drop_stored()
            return_free_memory()

    def load_all(self, held: Callable[[nn.Module], None] | None = None) -> nn.Module:
        """All layers at once, for what needs the whole model; the model itself, whose parameters are then ours.

        `held` is given each layer before the next one is read.
        """
        for index, layer in enumerate(self.layers):
            self._weights.load_layer(index, keep_stored=False)
            if held:
                held(layer)
        return self.model

    def forward(self, index: int, layer: nn.Module, state: State, cache: Any = None) -> State:
        """One layer over the hidden states; `cache` sees keys and values as a KV cache would.

        Gradients pass through to hidden states that require them (`calibration/gradients.py`), not to parameters.
        Tokens that have left stay as they are; those that leave here are marked in what is returned.
        """
        arguments = dict(state.arguments[index])
        if cache is not None and self.has_key_value_cache(index):
            arguments[self.cache_name(arguments)] = cache
        out = layer(state.hidden_BTH, **arguments)
        hidden_BTH = out[0] if isinstance(out, tuple) else out
        if state.frozen_BT is not None:
            hidden_BTH = torch.where(state.frozen_BT[..., None], state.hidden_BTH, hidden_BTH)
        after = state._replace(hidden_BTH=hidden_BTH)
        if self.freezing is None:
            return after
        leaving_BT = self.freezing(index, after)
        return after._replace(frozen_BT=leaving_BT if state.frozen_BT is None else state.frozen_BT | leaving_BT)

    def logits(self, state: State) -> torch.Tensor:
        """Everything after the last layer (norm, head, soft capping), by the model's own forward: [B, T, V].

        A classifier's are [B, labels], and it must be given whole texts.
        """
        return self._behind(self.model, state.hidden_BTH).logits

    def before_head(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        """Everything between a layer's output and the head, such as the final norm: [B, T, H]."""
        out: torch.Tensor = self._behind(self.model.base_model, hidden_BTH)[0]
        return out

    def _behind(self, model: Any, hidden_BTH: torch.Tensor) -> Any:
        """What the model, or its part without the head, gives when its layers give these hidden states."""
        stand_ins = [Given(layer, hidden_BTH, self._returns_tuple) for layer in self.layers]
        tokens_BT = torch.zeros(hidden_BTH.shape[:2], dtype=torch.long, device=self.device)
        with self._layers_replaced(stand_ins):
            return model(input_ids=tokens_BT, use_cache=False)

    def _recorded(self, recorders: Sequence[Recorder], tokens_BT: torch.Tensor, named: dict[str, torch.Tensor]) -> bool:
        """Whether every recorder was given what the one before it returned, with nothing done in between."""
        try:
            with self._layers_replaced(recorders):
                given = {name: tensor.to(self.device) for name, tensor in named.items()}
                out = self.model.base_model(input_ids=tokens_BT.to(self.device), use_cache=False, **given)
        except UnknownArchitecture:
            if self._returns_tuple != recorders[0].returns_tuple:
                raise
            return False
        recorded = {(recorder.hidden.data_ptr(), recorder.hidden.shape) for recorder in recorders}
        return len(recorded) == 1 and out[0].shape[:2] == tokens_BT.shape  # the first row of a tensor is no tuple's

    @cached_property
    def _own_modules(self) -> dict[str, str]:
        """The model's name of each linear layer by the checkpoint's, experts too."""
        weights = (name.removesuffix(".weight") for name in self.names.stored_name if name.endswith(".weight"))
        return {self.names.stored_module(module): module for module in weights}

    def _arguments(self, recorders: Sequence[Recorder], length: int) -> tuple[dict[str, Any], ...]:
        recorded = tuple(recorder.arguments for recorder in recorders)
        window = self.conditional.window if self.conditional else None
        return masked(recorded, window, length, self.device) if window else recorded

    def _sparse_inputs(self, index: int) -> Mapping[str, SparseInput]:
        """Of a layer's linears, by path in it."""
        inputs = self.conditional.inputs.tensors if self.conditional and self.conditional.inputs else {}
        if not inputs:
            return {}
        own, prefix = self._own_modules, f"{self.layer_name(index)}."
        places = {own[name]: one for name, one in inputs.items()}
        return {path.removeprefix(prefix): one for path, one in places.items() if path.startswith(prefix)}

    def _cannot_stream(self, why: str) -> UnknownArchitecture:
        return UnknownArchitecture(
            f"{type(self.model).__name__} cannot be streamed layer by layer: {why}",
            remedy="use another model; please report it with the engine's log",
            field="/model",
        )

    def cache_name(self, arguments: Mapping[str, Any]) -> str:
        """What a layer that is called with these names its cache. Raises `RecipeError` for one that takes none."""
        name = next((name for name in _CACHES if name in arguments), None)
        if name is None:
            raise RecipeError(
                f"layers of {type(self.model).__name__} take no KV cache that could be measured",
                remedy="leave `kv_cache` out",
                field="/chain",
            )
        return name

    @contextmanager
    def _layers_replaced(self, stand_ins: Sequence[nn.Module]) -> Iterator[None]:
        parent_name, _, name = self._prefix.rpartition(".")
        parent = self.model.get_submodule(parent_name)
        setattr(parent, name, nn.ModuleList(stand_ins))
        try:
            yield
        except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise self._cannot_stream(str(error)) from error
        finally:
            setattr(parent, name, self.layers)
