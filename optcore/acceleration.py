"""Which hardware makes a number format fast in an engine, and which does not.

Sources: https://docs.vllm.ai/en/latest/features/quantization/ (fp8, int8), the matrix of formats and compute
capabilities in https://nvidia.github.io/TransformerEngine/support_matrix.html, `ggml/src/ggml-cpu/repack.cpp` of
https://github.com/ggml-org/llama.cpp (`ggml_repack_get_optimal_repack_type`), and
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html.
"""

from collections.abc import Iterable, Iterator

from optcore.export.base import EngineName
from optcore.schemes import PRESETS

_GPU = ("vllm", "sglang", "tensorrt-llm")
_REPACKED, _NEON = ("q4_0", "q4_k", "iq4_nl"), ("q5_k", "q6_k", "q8_0")


def acceleration(engine: EngineName, target: str, formats: Iterable[str]) -> tuple[str, ...]:
    """Sentences about a checkpoint with these formats, named as in the matrix of engines."""
    names = tuple(name for name in formats if name in PRESETS)
    if target == "dense":
        return ("nothing: rounded weights in 16 bits take the memory and the time of any others",) if names else ()
    if engine == "transformers":  # other targets bring kernels of their own packages
        decoded = ("nothing: weights are decoded to 16 bits before they are multiplied",)
        return decoded if names and target == "compressed-tensors" else ()
    rows = {"llama.cpp": _ggml, "onnxruntime": _onnx, "onnxruntime-genai": _onnx}.get(engine, _gpu)
    return tuple(dict.fromkeys(said for name in names for said in rows(engine, name)))


def _gpu(engine: EngineName, name: str) -> Iterator[str]:
    activations = PRESETS[name].activations
    if name in ("fp8", "fp8_dynamic", "fp8_block"):
        below = "; from 7.5 on, kernels decode FP8 weights to 16 bits" if engine == "vllm" else ""
        yield f"compute capability 8.9 and above multiplies in FP8{below}"
    elif name in ("nvfp4", "mxfp4"):
        yield "compute capability 10.0 and above multiplies in FP4; below, there are no such units"
    elif name in ("int8", "int8_static"):
        yield "compute capability 7.5 to 9.0 multiplies in INT8; from 10.0 on it is not supported, and FP8 is"
    elif activations is None:
        yield "weights are decoded to 16 bits as they are multiplied: faster for few requests at once, not for many"


def _ggml(_engine: EngineName, name: str) -> Iterator[str]:
    if name in _REPACKED:
        yield f"{name} is repacked at loading for AVX2 and for NEON, where outputs are a multiple of 8"
    elif name in _NEON:
        yield f"{name} is repacked at loading for NEON with dot products alone; x86 computes block by block"
    elif name == "iq4_xs":
        yield "iq4_xs is looked up in a table and never repacked: on CPUs expect q4_k to be faster"


def _onnx(_engine: EngineName, name: str) -> Iterator[str]:
    if PRESETS[name].activations is not None:
        yield "x86 with VNNI and ARM with dot products multiply in INT8; older processors may gain nothing"
    else:
        yield "MatMulNBits decodes weights as it multiplies: less memory is read for each token, long prompts gain less"
