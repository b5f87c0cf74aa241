"""A model that generates as an ONNX graph with a KV cache: built by ONNX Runtime GenAI, with our codes put into it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from optcore.conditional import check_unconditional
from optcore.export.dense_writer import DenseLayout
from optcore.export.layout_writer import write_layout
from optcore.links import link_companions, link_documents
from optcore.onnx.builder import DATA, GRAPH, build_graph
from optcore.onnx.generator_fitness import check_generator
from optcore.onnx.matrices import can_pack
from optcore.onnx.mended_graph import mend_graph
from optcore.onnx.quantized_graph import QuantizedGraph
from optcore.onnx.verify_generator import verify_graph
from optcore.quantization import load_quantization
from optcore.streaming.quantized import QuantizedCheckpoint

if TYPE_CHECKING:
    from optcore.export.onnx import Onnx
    from optcore.run import Run

SETTINGS = "genai_config.json"


def write_generator(run: "Run", export: "Onnx") -> None:
    """Write `model.onnx` with its data, `genai_config.json`, tokenizer and configuration to `run.out`, and verify them.

    Of a quantized checkpoint the builder gets the rounded weights, and each matrix of them then gives way to its codes
    and scales: the graph needs no reader of our layout, and what it multiplies by is what was simulated. On the way
    the scratch folder holds the weights twice, once in the model's type and once in float32 or float16.
    """
    check_unconditional(run.checkpoint, "ONNX Runtime", "/target/format")
    check_generator(run.checkpoint, "/target")  # the chain may have changed what the configuration said
    link_companions(run.checkpoint, run.out)
    link_documents(run.checkpoint, run.out)
    if load_quantization(run.checkpoint) is None:
        dense, state = run.checkpoint, None
        built = build_graph(run, dense, export.plain, packs=True)
    else:
        state = QuantizedCheckpoint(run.checkpoint)
        dense = _write_rounded(run, state)
        built = build_graph(run, dense, export.plain, packs=_packs(state))
    mend_graph(built / GRAPH, dense)
    _take_companions(built, run.out)
    if state is None:
        for name in (GRAPH, DATA):
            shutil.move(built / name, run.out / name)
    else:
        graph = QuantizedGraph(built / GRAPH, state)
        graph.put_codes()
        graph.save(run.out / GRAPH)
    verify_graph(run, run.out / GRAPH, dense, state)


def _write_rounded(run: "Run", state: QuantizedCheckpoint) -> Path:
    """A plain checkpoint of the rounded weights, for the builder."""
    folder = run.scratch / "rounded"
    folder.mkdir(parents=True, exist_ok=True)
    write_layout(replace(run, out=folder), DenseLayout(state, run.checkpoint))
    return folder


def _packs(state: QuantizedCheckpoint) -> bool:
    """Whether q, k and v may become one matrix. Rounded inputs have a scale a layer, so there they stay apart."""
    linears = state.description.linears
    if any(scheme.activations for scheme in state.description.schemes):
        return False
    return can_pack({name: linear.scheme for name, linear in linears.items()})


def _take_companions(built: Path, out: Path) -> None:
    """The builder's settings and tokenizer, which GenAI reads; no execution provider is named: who runs it chooses."""
    for path in built.iterdir():
        if path.name not in (GRAPH, DATA):
            shutil.copyfile(path, out / path.name)
    settings = json.loads((out / SETTINGS).read_text())
    settings["model"]["decoder"]["session_options"]["provider_options"] = []
    (out / SETTINGS).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
