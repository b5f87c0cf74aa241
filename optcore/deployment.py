"""Deployment notes: engine settings for a result, which belong to how it is served rather than to its weights.

Flags are those of the releases in `optcore.engines`, as each engine's own documentation names them:
vLLM https://docs.vllm.ai/en/latest/configuration/engine_args/ (paged and quantized cache, attention backends),
SGLang https://docs.sglang.io/advanced_features/server_arguments.html,
TensorRT-LLM https://nvidia.github.io/TensorRT-LLM/llm-api/reference/KvCacheConfig.html,
transformers https://huggingface.co/docs/transformers/attention_interface,
llama.cpp https://github.com/ggml-org/llama.cpp/tree/master/tools/server,
ONNX Runtime GenAI https://onnxruntime.ai/docs/genai/reference/config.html.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from optcore.attention import Attention, attention_of
from optcore.draft_settings import ServedDraft, draft_obstacle, draft_settings
from optcore.engines import ENGINES, KV, MIXED, Family, Support, conditions, loading, support
from optcore.export.base import EngineName
from optcore.quantization import Quantization
from optcore.report import EngineNotes, Setting

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
    return tuple(
        EngineNotes(
            engine=ENGINES[engine],
            given=given,
            documentation=documentation,
            conditions=conditions(target, engine, wanted),
            settings=(
                *settings(Served(attention, _cache(target, engine, wanted), was_rounded)),
                *(draft_settings(engine, draft, recurrent=attention.recurrent) if draft else ()),
            ),
            without_draft=draft_obstacle(engine, draft, recurrent=attention.recurrent) if draft else "",
        )
        for engine in loading(target, wanted, family)
        for given, documentation, settings in (_ENGINES[engine],)
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


_ENGINES: dict[EngineName, tuple[str, str, Callable[[Served], Iterator[Setting]]]] = {
    "vllm": ("arguments of vllm serve", "https://docs.vllm.ai/en/latest/configuration/engine_args/", _vllm),
    "sglang": (
        "arguments of python -m sglang.launch_server",
        "https://docs.sglang.io/advanced_features/server_arguments.html",
        _sglang,
    ),
    "tensorrt-llm": (
        "keys of a YAML file for trtllm-serve --config",
        "https://nvidia.github.io/TensorRT-LLM/llm-api/reference/KvCacheConfig.html",
        _tensorrt,
    ),
    "transformers": (
        "arguments of from_pretrained, or of a server",
        "https://huggingface.co/docs/transformers/attention_interface",
        _transformers,
    ),
    "llama.cpp": (
        "arguments of llama-server, after conversion to GGUF",
        "https://github.com/ggml-org/llama.cpp/tree/master/tools/server",
        _llama_cpp,
    ),
    "onnxruntime-genai": (
        "keys of genai_config.json, after its model builder",
        "https://onnxruntime.ai/docs/genai/reference/config.html",
        _genai,
    ),
}
