"""Our GGUF files beside those of llama.cpp's own quantizer, of equal bits and the same importance, by llama.cpp."""

import ctypes
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
import torch
from fixtures.exporting import run_of
from fixtures.llama import opened, write
from gguf.constants import LlamaFileType
from torch.nn.functional import cross_entropy, kl_div

from optcore.calibration.text import Texts
from optcore.gguf.importance import MATRIX
from optcore.references import Calibration
from optcore.techniques import Ptq

llama_cpp = pytest.importorskip("llama_cpp", reason="llama.cpp was not compiled, and it is the rival here")
pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(1800)]

TEXT = Calibration(dataset="python-stdlib", samples=64, sequence_length=256)
MIXES = {
    "q2_k_m": LlamaFileType.MOSTLY_Q2_K,
    "q3_k_m": LlamaFileType.MOSTLY_Q3_K_M,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    "q5_k_m": LlamaFileType.MOSTLY_Q5_K_M,
    "q6_k": LlamaFileType.MOSTLY_Q6_K,
}
"""With llama.cpp's own names."""
METHODS = {
    "ours, nearest": {"rounding": "nearest", "smoothing": "none", "scale_search": "hessian"},
    "ours, as by default": {},
}

Quantized = Callable[[str, str], Path]


class Judged(NamedTuple):
    """A file by llama.cpp, over held-out windows."""

    perplexity: float
    kl: float
    """Of the source's predictions to these, nats a token."""


@pytest.fixture(scope="module")
def windows(stdlib_model: Path) -> torch.Tensor:
    return Texts(stdlib_model, TEXT, ()).evaluation_windows(32, 256, 1024)


@pytest.fixture(scope="module")
def source(stdlib_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(stdlib_model, tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def made(stdlib_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Quantized:
    """The file of a mix by one of our methods."""
    found: dict[tuple[str, str], Path] = {}

    def make(mix: str, method: str) -> Path:
        if (mix, method) not in found:
            folder = tmp_path_factory.mktemp("ours")
            technique = Ptq.model_validate({"scheme": mix, **METHODS[method]})
            technique.apply(run_of(stdlib_model, stdlib_model, folder / "ptq", calibration=TEXT))
            found[mix, method] = write(folder / "ptq", folder / "out")
        return found[mix, method]

    return make


def predictions(path: Path, windows_ST: torch.Tensor) -> torch.Tensor:
    """Logits [S, T, V] of a file, by llama.cpp."""
    model, found = opened(path, n_ctx=windows_ST.shape[1]), []
    for tokens in windows_ST.tolist():
        model.reset()
        model.eval(tokens)
        found.append(torch.from_numpy(np.array(model.scores[: len(tokens)], np.float32)))
    model.close()
    return torch.stack(found)


def judged(path: Path, windows_ST: torch.Tensor, source_STV: torch.Tensor) -> Judged:
    own, true = (logits[:, :-1].flatten(0, 1).log_softmax(-1) for logits in (predictions(path, windows_ST), source_STV))
    kl = kl_div(own, true, log_target=True, reduction="batchmean")
    return Judged(math.exp(cross_entropy(own, windows_ST[:, 1:].flatten())), float(kl))


def by_llama_cpp(source: Path, out: Path, file_type: LlamaFileType, matrix: Path) -> Path:
    """What llama.cpp's quantizer makes of the source with the importance in a file of ours."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(matrix).tensors}
    sums = {name.removesuffix(".in_sum2"): each for name, each in tensors.items() if name.endswith(".in_sum2")}
    means = {name: (each.data / tensors[f"{name}.counts"].data).astype(np.float32) for name, each in sums.items()}
    entries: Any = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()  # the last one's name is null
    for entry, (name, mean) in zip(entries, means.items(), strict=False):
        entry.name, entry.size = name.encode(), mean.size
        entry.data = mean.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.imatrix = int(file_type), 1, entries
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), params) == 0
    return out


@pytest.mark.parametrize("mix", MIXES)
def test_no_worse_than_llama_cpp_at_equal_bits(
    mix: str, made: Quantized, source: Path, windows: torch.Tensor, tmp_path: Path
) -> None:
    """Acceptance 1: the same types, hence the same bytes of tensors, and the same importance."""
    true = predictions(source, windows)
    nearest = made(mix, "ours, nearest")
    theirs = by_llama_cpp(source, tmp_path / "theirs.gguf", MIXES[mix], nearest.with_name(MATRIX))
    files = {"llama.cpp": theirs, **{method: made(mix, method) for method in METHODS}}
    types = {name: [(t.name, t.tensor_type) for t in gguf.GGUFReader(path).tensors] for name, path in files.items()}
    assert all(sorted(each) == sorted(types["llama.cpp"]) for each in types.values())
    found = {name: judged(path, windows, true) for name, path in files.items()}
    for name, one in found.items():
        print(f"{mix}: {name}: perplexity {one.perplexity:.4f}, KL {one.kl:.5f}, {files[name].stat().st_size} bytes")
    assert found["ours, as by default"].kl < found["llama.cpp"].kl
    assert found["ours, as by default"].perplexity <= found["llama.cpp"].perplexity
