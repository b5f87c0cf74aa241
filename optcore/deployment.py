"""Deployment notes: engine settings for a result, which belong to how it is served rather than to its weights.

Flags are those of the releases in `optcore.engines`, as each engine's own documentation names them:
vLLM https://docs.vllm.ai/en/latest/configuration/engine_args/ (paged and quantized cache, attention backends),
SGLang https://docs.sglang.io/advanced_features/server_arguments.html,
TensorRT-LLM https://nvidia.github.io/TensorRT-LLM/llm-api/reference/KvCacheConfig.html,
transformers https://huggingface.co/docs/transformers/attention_interface,
llama.cpp https://github.com/ggml-org/llama.cpp/tree/master/tools/server,
ONNX Runtime GenAI https://onnxruntime.ai/docs/genai/reference/config.html,
ONNX Runtime https://onnxruntime.ai/docs/performance/tune-performance/threading.html.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from optcore.acceleration import acceleration
from optcore.attention import Attention, attention_of
from optcore.deployment_commands import commands
from optcore.draft_settings import ServedDraft, draft_obstacle, draft_settings
from optcore.engines import ENGINES, KV, MIXED, Family, Support, conditions, loading, support
from optcore.export.base import EngineName
from optcore.quantization import Quantization
from optcore.report import EngineNotes, Setting, Task

_PAGED_tokens = 16
_FLASH_SIZES, _FLASHINFER_SIZES = range(8, 257, 8), (64, 128, 256)
"""Sizes of a head that the kernels are there for."""
_FP8_CACHES = ("fp8", "fp8_head")


class Served(NamedTuple):
    """What is served."""

    attention: Attention
    kv_cache: str
    """Name of the cache's number format, where the engine reads one from this checkpoint; else empty."""
    was_rounded: bool
    """Whether the result was measured with a cache in a number format."""


def deployment_notes(
    target: str,
    formats: Iterable[str],
    config: dict[str, Any],
    family: Family | None = None,
    draft: ServedDraft | None = None,
) -> tuple[EngineNotes, ...]:
    """Notes for each engine that loads these formats from a target, those that need no more for it first.

    Formats are named as in the matrix of engines. `config` is the result's `config.json`, of a model that generates;
    `draft` is what ships beside it.
    """
    wanted, attention = tuple(formats), attention_of(config)
    was_rounded = any(name.startswith(KV) for name in wanted)
    found = []
    for engine in loading(target, wanted, family):
        if engine in _GENERATORS:
            served = Served(attention, _cache(target, engine, wanted), was_rounded)
            drafted = draft_settings(engine, draft, recurrent=attention.recurrent) if draft else ()
            without = draft_obstacle(engine, draft, recurrent=attention.recurrent) if draft else ""
            settings = (*_GENERATORS[engine](served), *drafted)
            found.append(_notes(engine, target, wanted, settings, "text-generation", without))
    return tuple(found)


def encoder_notes(target: str, formats: Iterable[str], task: Task) -> tuple[EngineNotes, ...]:
    """Notes for each engine that loads these formats of a model that reads text at once, such as a classifier."""
    wanted = tuple(formats)
    return tuple(
        _notes(engine, target, wanted, tuple(_ENCODERS[engine]()), task)
        for engine in loading(target, wanted)
        if engine in _ENCODERS
    )


def _notes(
    engine: EngineName,
    target: str,
    wanted: tuple[str, ...],
    settings: tuple[Setting, ...],
    task: Task,
    without: str = "",
) -> EngineNotes:
    given, documentation = _GIVEN[engine]
    before = "" if target in _OWN else _MADE_FIRST.get(engine, "")
    return EngineNotes(
        engine=ENGINES[engine],
        given=given + before,
        documentation=documentation,
        conditions=conditions(target, engine, wanted),
        without_draft=without,
        settings=settings,
        commands=commands(engine, target, settings, task),
        hardware=acceleration(engine, target, wanted),
    )


def formats_of(description: Quantization | None) -> tuple[str, ...]:
    """The number formats in a checkpoint as the matrix of engines names them; none where nothing is quantized."""
    if description is None:
        return ()
    names = tuple(scheme.name for scheme in description.schemes)
    mixed = (MIXED,) if len(names) > 1 else ()
    return (*names, *mixed, *((f"{KV}{description.kv_cache}",) if description.kv_cache else ()))


def _cache(target: str, engine: EngineName, formats: Iterable[str]) -> str:
    """The cache's format where the engine applies it: rows with a condition say that it does not, or only partly."""
    caches = (name for name in formats if name.startswith(KV))
    return next((name.removeprefix(KV) for name in caches if _applies(support(target, engine, name))), "")


def _applies(row: Support | None) -> bool:
    return row is not None and row.loads == "yes"


def _vllm(served: Served) -> Iterator[Setting]:
    attention = served.attention
    yield from _length("--max-model-len", attention)
    yield from _parallel("--tensor-parallel-size", attention)
    dtype = "fp8" if served.kv_cache in _FP8_CACHES else "auto"
    yield _setting("--kv-cache-dtype", dtype, _cache_reason(served))
    if attention.recurrent:
        yield _setting("--no-enable-prefix-caching", "", "layers with a recurrent state keep no pages to share")
    else:
        yield _setting("--enable-prefix-caching", "", "requests that begin alike share the pages of what they share")
    if not attention.recurrent and not attention.latent:
        why = "tokens a page of PagedAttention, which is always on; FlashAttention takes multiples of 16"
        yield _setting("--block-size", str(_PAGED_tokens), why)
        yield from _vllm_backend(served)
    yield _setting("--enable-chunked-prefill", "", "long prompts do not hold up the answers of others")


def _vllm_backend(served: Served) -> Iterator[Setting]:
    size = served.attention.head_size or 0
    if served.kv_cache == "fp8_head":
        why = "scales of each head are read by this backend alone (FlashAttention 3, so Hopper)"
        yield _setting("--attention-backend", "FLASH_ATTN", why)
    elif served.kv_cache == "fp8" and size in _FLASHINFER_SIZES:
        why = "reads an FP8 cache; on Hopper FLASH_ATTN does too, and then attends in FP8"
        yield _setting("--attention-backend", "FLASHINFER", why)
    elif not served.kv_cache and size in _FLASH_SIZES:
        yield _setting("--attention-backend", "FLASH_ATTN", "FlashAttention; FLASHINFER may be faster on Blackwell")


def _sglang(served: Served) -> Iterator[Setting]:
    attention = served.attention
    yield from _length("--context-length", attention)
    yield from _parallel("--tensor-parallel-size", attention)
    dtype = "fp8_e4m3" if served.kv_cache == "fp8" else "auto"
    yield _setting("--kv-cache-dtype", dtype, _cache_reason(served))
    if not attention.recurrent and not attention.latent:
        yield _setting("--page-size", "1", "tokens a page; at 1, RadixAttention shares prefixes of any length")
        if attention.head_size in _FLASHINFER_SIZES:
            yield _setting("--attention-backend", "flashinfer", "on Hopper `fa3`, which is FlashAttention 3")
    chunk = min(4096, attention.longest or 4096)
    yield _setting("--chunked-prefill-size", str(chunk), "tokens of a prompt a step; fewer if prefill lacks memory")


def _tensorrt(served: Served) -> Iterator[Setting]:
    attention = served.attention
    yield from _length("max_seq_len", attention)
    yield from _parallel("tensor_parallel_size", attention)
    dtype = {"fp8": "fp8", "nvfp4": "nvfp4"}.get(served.kv_cache, "auto")
    yield _setting("kv_cache_config.dtype", dtype, _cache_reason(served))
    reuse = "false" if attention.recurrent else "true"
    why = (
        "a recurrent state cannot be shared in blocks" if attention.recurrent else "prefixes are shared block by block"
    )
    yield _setting("kv_cache_config.enable_block_reuse", reuse, why)
    yield _setting("kv_cache_config.tokens_per_block", "32", "tokens a page; a power of two")
    yield _setting("enable_chunked_prefill", "true", "long prompts do not hold up the answers of others")
    if not attention.recurrent and not attention.latent:
        yield _setting("attn_backend", "TRTLLM", "its own fused kernels; FLASHINFER is the other choice")


def _transformers(served: Served) -> Iterator[Setting]:
    why = "PyTorch's fused attention; `flash_attention_2` where flash-attn is installed"
    yield _setting("attn_implementation", "sdpa", why)
    if not served.attention.recurrent:
        why = "a paged cache; its pages take `--cb-block-size` tokens"
        yield _setting("transformers serve --continuous-batching", "", why)


def _llama_cpp(served: Served) -> Iterator[Setting]:
    yield from _length("--ctx-size", served.attention)
    yield _setting("--flash-attn", "auto", "FlashAttention where the device has it; a quantized V cache needs it")
    for name in ("--cache-type-k", "--cache-type-v"):
        yield _setting(name, "f16", "q8_0 halves the cache; that was not measured here")
    if not served.attention.recurrent:
        yield _setting("--cache-reuse", "256", "smallest piece of a prompt that is reused from the cache by shifting")


def _genai(served: Served) -> Iterator[Setting]:
    yield from _length("search.max_length", served.attention)
    why = "keys and values are appended in place rather than copied each token"
    yield _setting("search.past_present_share_buffer", "true", why)


def _length(name: str, attention: Attention) -> Iterator[Setting]:
    if attention.longest:
        why = "the most that the model's positions reach; less leaves memory for more requests"
        yield _setting(name, str(attention.longest), why)


def _parallel(name: str, attention: Attention) -> Iterator[Setting]:
    if attention.heads is None:
        return
    groups = f"{attention.key_value_heads or attention.heads} key-value heads"
    shared = f"{attention.heads} heads" if attention.latent else f"{attention.heads} heads and {groups}"
    beyond = "its compressed cache is on every GPU" if attention.latent else "beyond, key-value heads are stored twice"
    said = " or ".join(map(str, attention.degrees))
    yield _setting(name, said, f"GPUs that {shared} divide among without a rest; {beyond}")


def _cache_reason(served: Served) -> str:
    if served.kv_cache:
        return "the checkpoint holds the cache's scales, and its figures were measured with them"
    measured = "the figures were measured with a rounded one" if served.was_rounded else "as it was measured"
    return f"the cache stays in the type of the activations: {measured}"


def _setting(name: str, value: str, why: str) -> Setting:
    return Setting(name=name, value=value, why=why)


def _encoder() -> Iterator[Setting]:
    yield _setting("attn_implementation", "sdpa", "PyTorch's fused attention")


def _session() -> Iterator[Setting]:
    yield _setting("graph_optimization_level", "ORT_ENABLE_ALL", "its default; fuses attention and norms at loading")
    yield _setting(
        "intra_op_num_threads", "0", "its default: one thread a physical core; fewer where jobs share a machine"
    )


_GENERATORS: dict[EngineName, Callable[[Served], Iterator[Setting]]] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "tensorrt-llm": _tensorrt,
    "transformers": _transformers,
    "llama.cpp": _llama_cpp,
    "onnxruntime-genai": _genai,
}
"""ONNX Runtime alone has no loop that generates."""
_ENCODERS: dict[EngineName, Callable[[], Iterator[Setting]]] = {"transformers": _encoder, "onnxruntime": _session}
_GIVEN: dict[EngineName, tuple[str, str]] = {
    "vllm": ("arguments of vllm serve", "https://docs.vllm.ai/en/latest/configuration/engine_args/"),
    "sglang": (
        "arguments of python -m sglang.launch_server",
        "https://docs.sglang.io/advanced_features/server_arguments.html",
    ),
    "tensorrt-llm": (
        "keys of a YAML file for trtllm-serve --config",
        "https://nvidia.github.io/TensorRT-LLM/llm-api/reference/KvCacheConfig.html",
    ),
    "transformers": (
        "arguments of from_pretrained, or of a server",
        "https://huggingface.co/docs/transformers/attention_interface",
    ),
    "llama.cpp": ("arguments of llama-server", "https://github.com/ggml-org/llama.cpp/tree/master/tools/server"),
    "onnxruntime-genai": ("keys of genai_config.json", "https://onnxruntime.ai/docs/genai/reference/config.html"),
    "onnxruntime": (
        "attributes of SessionOptions",
        "https://onnxruntime.ai/docs/performance/tune-performance/threading.html",
    ),
}
"""Where the settings go, and the engine's own page about them."""
_OWN = ("gguf", "onnx")
"""Targets that are their engines' own files."""
_MADE_FIRST: dict[EngineName, str] = {
    "llama.cpp": ", after conversion to GGUF",
    "onnxruntime-genai": ", after its model builder",
}
