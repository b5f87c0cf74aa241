"""Which engine loads which number format in which target: a table, and the question whether a recipe fits it.

Rows were read in the loaders of the engines' releases below, or seen by loading a checkpoint (`evidence: run`). What
no row names, no engine loads. A row is one fact, so a new release of an engine is a change of rows, not of code.
"""

from collections.abc import Iterable
from functools import cache
from typing import Literal

from optcore.export.base import EngineName
from optcore.frozen import Frozen
from optcore.schemes import GGML_FORMATS, KV_CACHE_PRESETS, PRESETS

Family = Literal["dense", "moe", "fused_moe"]
"""`fused_moe`: experts of a layer lie in one tensor of the checkpoint; quantized, they are written one by one."""
Loads = Literal["yes", "conditional", "no"]

ENGINES: dict[EngineName, str] = {
    "vllm": "vLLM 0.33.0",
    "sglang": "SGLang 0.5.23",
    "tensorrt-llm": "TensorRT-LLM, PyTorch backend of August 2026",
    "transformers": "transformers 5.23",
    "llama.cpp": "llama.cpp of August 2026",
    "onnxruntime-genai": "ONNX Runtime GenAI 0.18",
    "onnxruntime": "ONNX Runtime 1.32",
}

MIXED = "mixed"
"""Stands in a row's `formats` for several schemes in one checkpoint."""
KV = "kv:"
"""Begins the name of a KV cache format in a row's `formats`."""


class Support(Frozen):
    """One fact: how an engine treats some number formats in a target."""

    target: str
    """`format` of the export."""
    engine: EngineName
    formats: tuple[str, ...]
    """Schemes; KV cache formats after `kv:`; or `mixed`."""
    loads: Loads
    note: str = ""
    """The condition, or why not."""
    families: tuple[Family, ...] = ("dense", "moe", "fused_moe")
    """Architectures that it holds for."""
    evidence: Literal["read", "run"] = "read"
    """Whether the engine's loader was read, or a checkpoint was loaded with it."""


_INT4 = ("int4", "int4_g64", "int4_g32")
_INT4_ASYM = ("int4_asym", "int4_asym_g64", "int4_asym_g32")
_LOW_BITS = tuple(name for name in PRESETS if name.startswith(("int3", "int2")))
_FP8 = ("fp8", "fp8_dynamic", "fp8_block")
_INT8 = ("int8", "int8_static", "int8_w8a16")
_NVFP4 = ("nvfp4", "nvfp4_w4a16")
_MXFP4 = ("mxfp4", "mxfp4_w4a16")
_FP8_KV = ("kv:fp8",)

_CUDA_ONLY = "CUDA builds only"
_NO_FP4_UNITS = "below compute capability 10.0 the activations stay in 16 bits, and accuracy is not the simulated one"
_HUMMING = "needs the Humming kernels for widths other than 4 and 8 bits"
_KEPT = "the scales load without complaint and are not applied"
_GPTQMODEL = "needs the gptqmodel package"
_SHARED = "tied embeddings are rounded to 4 bits unless its builder is given shared_embeddings=false"


def _rows(target: str, engine: EngineName, *facts: tuple[object, ...]) -> list[Support]:
    """Rows of one engine and target; a fact is (formats, loads, note, {more fields})."""
    rows = []
    for formats, loads, *rest in facts:
        note = next((item for item in rest if isinstance(item, str)), "")
        more = next((item for item in rest if isinstance(item, dict)), {})
        fields = {"target": target, "engine": engine, "formats": formats, "loads": loads, "note": note, **more}
        rows.append(Support.model_validate(fields))
    return rows


_ONE_BY_ONE = "looks for one tensor that holds a layer's experts, and finds them one by one"
_COMPRESSED = tuple(name for name in PRESETS if name not in ("llm_int8", "nf4", *GGML_FORMATS))
_RUN = {"evidence": "run"}
_EXPERTS = {"families": ("moe", "fused_moe")}
_NOT_FUSED = {"families": ("dense", "moe")}
_FUSED = {"families": ("fused_moe",)}
_ONE_NETWORK = {"families": ("dense",)}

_COMPRESSED_TENSORS = [
    *_rows(
        "compressed-tensors",
        "vllm",
        ((*_FP8, "fp8_block_w8a16", *_INT8, *_INT4, *_INT4_ASYM, *_MXFP4, "mxfp8"), "yes"),
        (("nvfp4_w4a16",), "yes"),
        (("nvfp4",), "conditional", _NO_FP4_UNITS),
        (_LOW_BITS, "conditional", _HUMMING),
        (("int4_fp8",), "conditional", "compute capability 9.0 (Hopper) only"),
        (("kv:fp8", "kv:fp8_head", MIXED), "yes"),
    ),
    *_rows(
        "compressed-tensors",
        "sglang",
        ((*_FP8, *_INT8, *_INT4, *_INT4_ASYM), "yes"),
        (("nvfp4_w4a16",), "yes"),
        (("nvfp4",), "conditional", _NO_FP4_UNITS),
        (("int4_fp8", *_MXFP4), "conditional", "experts only; dense layers are refused", _EXPERTS),
        (_LOW_BITS, "no", "reads 4 and 8 bits"),
        (("fp8_block_w8a16",), "no", "reads weight-only FP8 per tensor and per channel"),
        ((*_FP8_KV, MIXED), "yes"),
    ),
    *_rows(
        "compressed-tensors",
        "tensorrt-llm",
        (("fp8_dynamic", "fp8_block", "nvfp4", "mxfp4_w4a16"), "yes"),
        (("fp8",), "no", "its reader has no per-tensor FP8"),
        ((*_INT8, *_INT4, *_INT4_ASYM, "int4_fp8", "nvfp4_w4a16", "mxfp4"), "no", "not in its reader"),
        (_FP8_KV, "yes"),
        ((MIXED,), "conditional", "modules named one by one or by expression, as we write them"),
    ),
    *_rows(
        "compressed-tensors",
        "transformers",
        (
            (*_FP8, "fp8_block_w8a16", *_INT8, *_INT4, *_NVFP4, *_MXFP4, "mxfp8", "int4_fp8", "int4_fp8_static"),
            "yes",
            _RUN | _NOT_FUSED,
        ),
        (tuple(name for name in _LOW_BITS if "asym" not in name), "yes", _RUN | _NOT_FUSED),
        (
            (*_INT4_ASYM, *(name for name in _LOW_BITS if "asym" in name)),
            "no",
            "5.17 loads it; 5.23 makes room for unpacked zero points and refuses the packed ones",
            _RUN | _NOT_FUSED,
        ),
        (_COMPRESSED, "no", _ONE_BY_ONE, _RUN | _FUSED),
        (_FP8_KV, "conditional", _KEPT, _RUN),
        (("kv:fp8_head",), "no", "makes room for one scale a tensor", _RUN),
        ((MIXED,), "yes", _RUN),
    ),
    *_rows(
        "compressed-tensors",
        "llama.cpp",
        (("fp8", "nvfp4"), "conditional", "one format for all layers; converted to GGUF", _ONE_NETWORK),
        ((MIXED,), "no", "its converter refuses several groups"),
    ),
    *_rows("compressed-tensors", "onnxruntime-genai", (("fp8", "fp8_dynamic", "nvfp4"), "conditional", _CUDA_ONLY)),
]

_FP8_BLOCK = [
    *_rows("fp8", "vllm", (("fp8_block",), "yes")),
    *_rows("fp8", "sglang", (("fp8_block",), "yes")),
    *_rows("fp8", "tensorrt-llm", (("fp8_block",), "yes")),
    *_rows(
        "fp8",
        "transformers",
        (("fp8_block",), "yes", _RUN | _NOT_FUSED),
        (("fp8_block",), "no", _ONE_BY_ONE, _RUN | _FUSED),
    ),
    *_rows("fp8", "llama.cpp", (("fp8_block",), "yes")),
]

_MODELOPT = [
    *_rows(
        "modelopt",
        "vllm",
        (("fp8", "fp8_dynamic", "nvfp4_w4a16"), "yes"),
        (("fp8_block",), "conditional", "inputs and outputs must be multiples of 128"),
        (("nvfp4",), "conditional", _NO_FP4_UNITS),
        (("int4", "int4_fp8_static"), "no", "W4A16_AWQ and W4A8_AWQ are not in its list"),
        (("kv:fp8", MIXED), "yes"),
        (("kv:nvfp4", "kv:nvfp4_affine"), "no", "reads FP8 KV scales only"),
    ),
    *_rows(
        "modelopt",
        "sglang",
        (("fp8",), "yes"),
        (_NVFP4, "conditional", _NO_FP4_UNITS),
        (("fp8_dynamic", "fp8_block"), "no", "reads per-tensor FP8"),
        (("int4", "int4_fp8_static"), "no", "W4A16_AWQ and W4A8_AWQ are not in its list"),
        (("kv:fp8", MIXED), "yes"),
    ),
    *_rows(
        "modelopt",
        "tensorrt-llm",
        (("fp8", "fp8_dynamic", "fp8_block", "nvfp4", "nvfp4_w4a16", "int4"), "yes"),
        (("int4_fp8_static",), "conditional", "compute capability 8.9 or 9.0"),
        (("kv:fp8", "kv:nvfp4", MIXED), "yes"),
        (("kv:nvfp4_affine",), "conditional", "biases are read where its attention kernel has them"),
    ),
    *_rows(
        "modelopt",
        "transformers",
        (("fp8",), "no", "loads silently wrong: scales are dropped with a warning", _RUN),
        ((*_NVFP4, "int4", "int4_fp8_static"), "no", "shapes do not match", _RUN),
    ),
    *_rows("modelopt", "llama.cpp", (("fp8", "nvfp4"), "conditional", "converted to GGUF", _ONE_NETWORK)),
    *_rows("modelopt", "onnxruntime-genai", (("fp8", "nvfp4"), "conditional", _CUDA_ONLY)),
]

_AWQ = [
    *_rows("awq", "vllm", ((*_INT4_ASYM, *_INT4), "yes")),
    *_rows("awq", "sglang", ((*_INT4_ASYM, *_INT4), "yes")),
    *_rows("awq", "transformers", ((*_INT4_ASYM, *_INT4), "conditional", _GPTQMODEL)),
    *_rows("awq", "onnxruntime-genai", ((*_INT4_ASYM, *_INT4), "conditional", _SHARED, _RUN | _ONE_NETWORK)),
]

_GPTQ = [
    *_rows("gptq", "vllm", ((*_INT4, "int8_w8a16"), "yes")),
    *_rows("gptq", "sglang", ((*_INT4, "int8_w8a16"), "yes")),
    *_rows("gptq", "transformers", ((*_INT4, "int8_w8a16"), "conditional", f"{_GPTQMODEL} and optimum")),
    *_rows(
        "gptq",
        "onnxruntime-genai",
        (_INT4, "conditional", _SHARED, _RUN | _ONE_NETWORK),
        (("int8_w8a16",), "no", "its kernel knows groups of 16 to 256 only", _RUN),
    ),
]

_GGUF = [
    *_rows(
        "gguf",
        "llama.cpp",
        ((*sorted(GGML_FORMATS), *_INT4, *_INT4_ASYM, "int8_w8a16", "mxfp4_w4a16", "nvfp4_w4a16", MIXED), "yes", _RUN),
    )
]

_ONNX = [
    *_rows(
        "onnx",
        "onnxruntime-genai",
        ((*_INT4, *_INT4_ASYM, *_INT8, MIXED), "yes", _RUN | _ONE_NETWORK),
    ),
    *_rows("onnx", "onnxruntime", (("int8", "int8_static", "int8_w8a16", MIXED), "yes", _RUN | _ONE_NETWORK)),
]

_ROUNDED = "rounded weights in 16 bits; activations and the KV cache are not rounded"
_DENSE = [
    row
    for engine in ENGINES
    for row in _rows(
        "dense",
        engine,
        ((*PRESETS, MIXED), "yes", _ROUNDED, _RUN if engine == "transformers" else {}),
        (tuple(f"{KV}{name}" for name in KV_CACHE_PRESETS), "conditional", "the KV cache is not rounded"),
    )
]

_DECODED_FIRST = "for storing and sending alone: decode it to a plain checkpoint first"
_COMPACT = [row for engine in ENGINES for row in _rows("compact", engine, ((*PRESETS, MIXED), "no", _DECODED_FIRST))]

MATRIX: tuple[Support, ...] = (
    *_COMPRESSED_TENSORS,
    *_FP8_BLOCK,
    *_MODELOPT,
    *_AWQ,
    *_GPTQ,
    *_GGUF,
    *_ONNX,
    *_DENSE,
    *_COMPACT,
)


@cache
def support(target: str, engine: EngineName, name: str, family: Family | None = None) -> Support | None:
    """The row for a format; None where there is none. Without a family, one for either serves."""
    rows = (row for row in MATRIX if row.target == target and row.engine == engine and name in row.formats)
    return next((row for row in rows if family is None or family in row.families), None)


def obstacles(target: str, engine: EngineName, formats: Iterable[str], family: Family | None = None) -> list[str]:
    """Why an engine does not load a checkpoint with all these formats; empty when it does."""
    if not any(row.target == target and row.engine == engine for row in MATRIX):
        return ["anything"]
    found = []
    for name in formats:
        row = support(target, engine, name, family)
        if row is None or row.loads == "no":
            found.append(f"{spoken(name)} ({row.note})" if row and row.note else spoken(name))
    return found


def conditions(target: str, engine: EngineName, formats: Iterable[str]) -> tuple[str, ...]:
    """What must hold beyond the engine's version."""
    rows = (support(target, engine, name) for name in formats)
    return tuple(dict.fromkeys(row.note for row in rows if row and row.loads == "conditional"))


def loading(target: str, formats: Iterable[str], family: Family | None = None) -> tuple[EngineName, ...]:
    """Engines that load a checkpoint with all these formats, those without conditions first."""
    wanted = tuple(formats)
    able: list[EngineName] = [engine for engine in ENGINES if not obstacles(target, engine, wanted, family)]
    return tuple(sorted(able, key=lambda engine: bool(conditions(target, engine, wanted))))


def spoken(name: str) -> str:
    """A row's format as a sentence says it."""
    if name == MIXED:
        return "mixed precision"
    return f"a KV cache in {name.removeprefix(KV)}" if name.startswith(KV) else name
