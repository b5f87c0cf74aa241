"""ggml's own encoder of block formats, in C, through the library that llama-cpp-python brings along."""

import ctypes
from functools import cache
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return library


def ggml_blocks(weight_NK: torch.Tensor, name: str, importance_K: torch.Tensor | None = None) -> np.ndarray:
    """The bytes of a weight's rows in a format such as `q4_k`, uint8 [N, bytes]; on one thread."""
    rows, columns = weight_NK.shape
    kind = GGMLQuantizationType[name.upper()]
    size, octets = GGML_QUANT_SIZES[kind]
    source = np.ascontiguousarray(weight_NK.numpy(), dtype=np.float32)
    weights = None if importance_K is None else np.ascontiguousarray(importance_K.numpy(), dtype=np.float32)
    blocks = np.zeros((rows, columns // size * octets), np.uint8)
    written = _library().ggml_quantize_chunk(
        int(kind), source.ctypes.data, blocks.ctypes.data, 0, rows, columns,
        None if weights is None else weights.ctypes.data,
    )  # fmt: skip
    assert written == blocks.nbytes
    return blocks


def ggml_decoded(blocks: np.ndarray, name: str) -> torch.Tensor:
    """The weight that blocks stand for, float32 [N, K], by the decoder of the gguf package."""
    return torch.from_numpy(dequantize(blocks, GGMLQuantizationType[name.upper()]))
