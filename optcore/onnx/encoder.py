"""A BERT-style encoder as an ONNX graph, dense or with the codes and scales of a quantization pass."""

from typing import TYPE_CHECKING

import torch

from optcore.conditional import check_unconditional
from optcore.links import link_companions
from optcore.onnx.encoder_check import Expected, check_run, expected_logits
from optcore.onnx.graph_weights import check_weights
from optcore.onnx.rounded_linears import replaced, rounded_linear
from optcore.onnx.trace import write_graph
from optcore.quantization import load_quantization
from optcore.streaming.decoder import Decoder
from optcore.streaming.quantized import QuantizedCheckpoint
from optcore.streaming.simulate import as_quantized

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from optcore.export.onnx import Onnx
    from optcore.run import Run

GRAPH = "model.onnx"
_NO_VNNI = (
    "the file's integers multiply exactly on ARM, and on x86 processors with VNNI; older ones add up 16-bit sums that"
    " overflow: set ONNX Runtime's session option `session.x64quantprecision` to 1 there"
)


def write_encoder(run: "Run", export: "Onnx") -> None:
    """Write `model.onnx`, tokenizer and configuration to `run.out`.

    Raises `RecipeError` for a model that is told to run by conditions, `ExportMismatch` when ONNX Runtime does not
    compute what was simulated.
    """
    check_unconditional(run.checkpoint, "ONNX Runtime", "/target/format")
    state = QuantizedCheckpoint(run.checkpoint) if load_quantization(run.checkpoint) else None
    path = run.out / GRAPH
    expected = _write(run, export, state, path)
    link_companions(run.checkpoint, run.out)
    run.progress("verifying", 0, 2)
    if state:
        check_weights(path, state)
    run.progress("verifying", 1, 2)
    run.results["engine_error"] = check_run(path, expected)
    run.progress("verifying", 2, 2)
    if state and any(scheme.activations for scheme in state.description.schemes):
        run.notice(_NO_VNNI)


def _write(run: "Run", export: "Onnx", state: QuantizedCheckpoint | None, path: "Path") -> Expected:
    """Write the graph; returns what it should compute."""
    decoder = Decoder(run.checkpoint, torch.device("cpu"), torch.float32)
    model = decoder.load_all()
    model.set_attn_implementation("eager")  # what it takes apart is what ONNX Runtime knows to fuse
    run.progress("packing", 0, 1)
    expected = expected_logits(decoder, is_half=export.plain == "fp16")
    with as_quantized(decoder):
        if export.plain == "fp16":
            model.half()
        with replaced(model, _modules(decoder, state) if state else {}):
            write_graph(model, expected.calls[-1].inputs, path)
    run.progress("packing", 1, 1)
    return expected


def _modules(decoder: Decoder, state: QuantizedCheckpoint) -> "dict[str, nn.Module]":
    """What stands for each quantized layer, by path in the model."""
    own = {name: decoder.names.own_modules[name] for name in state.description.modules}
    return {path: rounded_linear(state, name, decoder.model.get_submodule(path).bias) for name, path in own.items()}
