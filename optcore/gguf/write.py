"""A calibrated state as one GGUF file: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

import json
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import gguf
import numpy as np

from optcore.conditional import check_unconditional
from optcore.gguf.architectures import Architecture, Config, architecture_of, head_width, ignored_window
from optcore.gguf.contents import Contents
from optcore.gguf.importance import write_importance
from optcore.gguf.layout import Entry, lay_out
from optcore.gguf.metadata import add_metadata
from optcore.gguf.rope import rope_of
from optcore.gguf.rotation import frequency_factors
from optcore.gguf.tokenizer import read_vocabulary
from optcore.gguf.tokenizer_keys import add_vocabulary
from optcore.gguf.verify import verify
from optcore.gguf.weights import Weights
from optcore.links import LICENCES, link_named

if TYPE_CHECKING:
    from optcore.export.gguf import Gguf
    from optcore.run import Run

MODEL = "model.gguf"
_FIELD = "/target/format"
_MIXED = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
_UNIFORM = {"Q3_K": "Q3_K_S", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S", "MXFP4": "MXFP4_MOE"}


def write_gguf(run: "Run", export: "Gguf") -> None:
    """Write `model.gguf` to `run.out`, decode it again, and put `imatrix.gguf` beside it where importance was kept.

    Raises `RecipeError` for what the file cannot say, and `ExportMismatch` when it does not decode to the weights that
    were simulated.
    """
    check_unconditional(run.checkpoint, "llama.cpp", _FIELD)
    config = json.loads((run.checkpoint / "config.json").read_text())
    architecture = architecture_of(config, _FIELD)
    contents = Contents(Weights(run.checkpoint), config, architecture)
    entries = lay_out(contents.weights, config, architecture, export.plain)
    with closing(gguf.GGUFWriter(run.out / MODEL, architecture.name)) as writer:
        _add_keys(run, writer, config, architecture)
        writer.add_file_type(file_type(entries))
        _write_tensors(run, writer, entries, contents)
    link_named(run.checkpoint, run.out, ("config.json", *LICENCES))
    verify(run, run.out / MODEL, entries, contents)
    write_importance(run, config, architecture)


def file_type(entries: list[Entry]) -> gguf.LlamaFileType:
    """What most of the weights are stored in, as a program shows it to people."""
    sizes: Counter[str] = Counter()
    for entry in entries:
        if len(entry.shape) > 1:
            sizes[entry.type] += int(np.prod(entry.shape))
    blocks = [name for name, _ in sizes.most_common() if name not in ("F32", "F16", "BF16")]
    if not blocks:
        most = sizes.most_common(1)[0][0]
        return gguf.LlamaFileType["ALL_F32" if most == "F32" else f"MOSTLY_{most}"]
    names = _MIXED if len(blocks) > 1 else _UNIFORM
    return gguf.LlamaFileType[f"MOSTLY_{names.get(blocks[0], _UNIFORM.get(blocks[0], blocks[0]))}"]


def _add_keys(run: "Run", writer: gguf.GGUFWriter, config: Config, architecture: Architecture) -> None:
    add_metadata(writer, config, architecture, _FIELD)
    vocabulary = read_vocabulary(run.checkpoint, config)
    add_vocabulary(writer, vocabulary)
    for remark in vocabulary.remarks:
        run.notice(remark)
    if window := ignored_window(config, architecture):
        run.notice(
            f"llama.cpp's {architecture.name} lets every token attend to all before it; the model was made to attend "
            f"to the last {window}, so that it says something else in longer texts"
        )


def _write_tensors(run: "Run", writer: gguf.GGUFWriter, entries: list[Entry], contents: Contents) -> None:
    """Names, shapes and types first, then the tensors, one at a time in memory."""
    rope = rope_of(contents.config, _FIELD)
    factors = frequency_factors(rope, head_width(contents.config)) if rope["rope_type"] == "llama3" else None
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for entry in entries:
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.nbytes, entry.ggml_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for count, entry in enumerate(entries):
        writer.write_tensor_data(contents.written(entry))
        run.progress("packing", count + 1, len(entries))
