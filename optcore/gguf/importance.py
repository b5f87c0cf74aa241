"""What calibration measured of each layer's inputs, as llama.cpp's importance matrix.

Tensors of a file of the type `imatrix`: https://github.com/ggml-org/llama.cpp/tree/master/tools/imatrix. For each
weight `<name>.in_sum2` float32 [experts, K], sums of squares of each input, and `<name>.counts` float32 [experts, 1],
the tokens they are sums over. llama.cpp's quantizer weights a rounding error by their quotient.
"""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

from optcore.gguf.architectures import Architecture, Config, expert_count
from optcore.gguf.layout import expert_number, gguf_name, gguf_names
from optcore.importance import Importance, load_importance
from optcore.references import Calibration

if TYPE_CHECKING:
    from optcore.run import Run

MATRIX = "imatrix.gguf"


def write_importance(run: "Run", config: Config, architecture: Architecture) -> None:
    """Write `imatrix.gguf` to `run.out`, with which llama.cpp makes other sizes of the same model."""
    if not (measured := load_importance(run.checkpoint)):
        return
    names = gguf_names(architecture, int(config["num_hidden_layers"]))
    by_name: dict[str, dict[int, Importance]] = {}
    for module, power in sorted(measured.items()):
        if name := gguf_name(names, f"{module}.weight"):
            by_name.setdefault(name, {})[expert_number(module)] = power
    with closing(gguf.GGUFWriter(run.out / MATRIX, architecture.name)) as writer:
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", [_source(run.calibration)])
        writer.add_uint32("imatrix.chunk_count", run.calibration.samples)
        writer.add_uint32("imatrix.chunk_size", run.calibration.sequence_length)
        for name, powers in by_name.items():
            counts_E1 = np.zeros(((expert_count(config) or 1) if "_exps." in name else 1, 1), np.float32)
            sums_EK = np.zeros((len(counts_E1), len(next(iter(powers.values())).mean_square_K)), np.float32)
            for number, power in powers.items():
                counts_E1[number], sums_EK[number] = (
                    power.tokens,
                    power.mean_square_K.numpy() * np.float32(power.tokens),
                )
            writer.add_tensor(f"{name}.in_sum2", sums_EK)
            writer.add_tensor(f"{name}.counts", counts_E1)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def _source(text: Calibration) -> str:
    """What people know the text by. Of a file its bare name: where it lies is nobody's business who gets the model."""
    return Path(text.path).name if text.path else text.dataset
