"""An encoder as a graph: torch's exporter, with any number of texts of any length."""

import inspect
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import DeduplicateHashedInitializersPass
from transformers import PreTrainedModel

from optcore.onnx.rounded_linears import MODULE, OPSET

Inputs = dict[str, torch.Tensor]

# What torch's exporter says of itself, not of the model: of its tree of arguments, and of axes that two inputs share.
_OWN_WARNINGS = (r"`isinstance\(treespec, LeafSpec\)` is deprecated", r"# The axis name: \w+ will not be used")


class _Logits(torch.nn.Module):
    """The model with tensors alone as inputs and output."""

    def __init__(self, model: PreTrainedModel, names: Iterable[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, values, strict=True))).logits


def inputs_of(model: PreTrainedModel, tokens_BT: torch.Tensor, attended_BT: torch.Tensor) -> Inputs:
    """What the model is called with, int64 [B, T] each; segments where it has a table of more than one."""
    inputs = {"input_ids": tokens_BT, "attention_mask": attended_BT}
    has_segments = getattr(model.config, "type_vocab_size", 0) > 1
    if has_segments and "token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["token_type_ids"] = torch.zeros_like(tokens_BT)
    return inputs


def write_graph(model: PreTrainedModel, inputs: Inputs, path: Path) -> None:
    """Write the graph of a model that is called with such inputs: `logits` of `batch` texts of `sequence` tokens.

    Weights of more than 1.5 GiB go to a file beside it.
    """
    axes = {0: "batch", 1: "sequence"}
    with warnings.catch_warnings(), _silent_of_vision(), torch.no_grad():
        for said in _OWN_WARNINGS:
            warnings.filterwarnings("ignore", message=said)
        program = torch.onnx.export(
            _Logits(model, inputs).eval(),
            tuple(inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_shapes=((axes,) * len(inputs),),
            optimize=False,
            verbose=False,
        )
        DeduplicateHashedInitializersPass()(program.model)  # a tied head, layers that are one
        onnxscript.optimizer.optimize_ir(program.model, should_fold=_may_fold)
    _forget_origin(program.model)
    program.save(path)


@contextmanager
def _silent_of_vision() -> Iterator[None]:
    """The exporter's table of operators has some of torchvision. It logs a warning for each where that is missing: no
    fault here, since no encoder of text calls them. All else that it logs is heard."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.addFilter(_is_no_vision)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_vision)


def _is_no_vision(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("torchvision is not installed")


def _forget_origin(model: onnx_ir.Model) -> None:
    """Drop what the exporter notes for whoever debugs it: stack traces with this machine's paths, and the names of
    modules and calls. Our own mark alone stays."""
    ours = {node: about for node in model.graph.all_nodes() if (about := node.metadata_props.get(MODULE))}
    for place in _places(model):
        place.metadata_props.clear()
        place.doc_string = None
    for node, about in ours.items():
        node.metadata_props[MODULE] = about


def _places(model: onnx_ir.Model) -> Iterator[Any]:
    """All of a model that may have notes: itself, functions, graphs, nodes, and values with their tensors."""
    yield model
    yield from model.functions.values()
    for graph in model.graphs():
        yield graph
        yield from graph.inputs
        yield from graph.initializers.values()
        yield from (value.const_value for value in graph.initializers.values() if value.const_value)
        for node in graph:
            yield node
            yield from node.outputs


def _may_fold(node: Any) -> bool | None:
    """Codes stay codes: folded, the weight would be stored as floats. And a head that is tied to the table of tokens
    stays that table turned: ONNX Runtime turns it when it loads the file."""
    is_shared = node.op_type == "Transpose" and len(node.inputs[0].uses()) > 1
    return False if is_shared or MODULE in node.metadata_props else None
