"""How engines are told to use a draft that ships beside a model.

Names are those of the releases in `optcore.engines`: vLLM's `SpeculativeConfig` (https://docs.vllm.ai/en/latest/features/
speculative_decoding/), SGLang's `--speculative-*` (https://docs.sglang.io/advanced_features/speculative_decoding.html),
TensorRT-LLM's `speculative_config` (https://nvidia.github.io/TensorRT-LLM/features/speculative-decoding.html),
`generate` of transformers, and llama.cpp (https://github.com/ggml-org/llama.cpp/blob/master/docs/speculative.md).
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from optcore.export.base import EngineName
from optcore.report import Setting


class ServedDraft(NamedTuple):
    """A draft as a deployment sees it."""

    method: str
    """As the recipe names it."""
    layout: str
    """As `optcore.drafts.folder` names it; empty for `model`, a checkpoint like any other, and `ngram`."""
    tokens: int
    """Drafted a round."""
    taps: tuple[int, ...] = ()
    """Layers, from 0, whose outputs it reads."""
    has_mask_token: bool = False
    """Of `block`: its guesses stand for a token of the target, rather than for an embedding of their own."""
    longest: int = 4
    """Of `ngram`: tokens that are looked up at most."""
    folder: str = "draft"
    """Where it lies in the artifact."""


def draft_settings(engine: EngineName, draft: ServedDraft, *, recurrent: bool = False) -> tuple[Setting, ...]:
    """What an engine is told; nothing where it cannot use the draft."""
    return () if draft_obstacle(engine, draft, recurrent=recurrent) else tuple(_ENGINES[engine](draft))


def draft_obstacle(engine: EngineName, draft: ServedDraft, *, recurrent: bool = False) -> str:
    """Why an engine cannot use a draft, as the end of a sentence; empty where it can. `recurrent` is a model some of
    whose layers keep a state instead of keys and values."""
    if engine not in _LOADS:
        return "decodes without drafts"
    if recurrent and engine == "transformers":
        return "drafts for no model with a recurrent state, which it cannot take back"
    if draft.method not in _LOADS[engine]:
        return f"has no loader for drafts of the method {draft.method}"
    if draft.method == "block" and not draft.has_mask_token:
        return "reads the embedding that stands for a guess from a pickled file alone"
    if draft.layout == "speculators" and engine != "vllm":
        return "does not read the layout speculators"
    return ""


def _vllm(draft: ServedDraft) -> Iterator[Setting]:
    names = {"block": "dflash", "model": "draft_model"}
    said: dict[str, Any] = {"method": names.get(draft.method, draft.method)}
    if draft.method == "ngram":
        said |= {"prompt_lookup_min": 1, "prompt_lookup_max": draft.longest}
    else:
        said["model"] = draft.folder
    said["num_speculative_tokens"] = draft.tokens
    yield _setting("--speculative-config", json.dumps(said), _why(draft))


def _sglang(draft: ServedDraft) -> Iterator[Setting]:
    names = {"eagle3": "EAGLE3", "block": "DFLASH", "model": "STANDALONE", "ngram": "NGRAM"}
    yield _setting("--speculative-algorithm", names[draft.method], "how drafts are made")
    if draft.method != "ngram":
        yield _setting("--speculative-draft-model-path", draft.folder, _why(draft))
    if draft.method in ("eagle3", "model"):
        yield _setting("--speculative-num-steps", str(draft.tokens), "tokens drafted a round, as measured")
        yield _setting("--speculative-eagle-topk", "1", "a chain, as measured; more make it a tree")
    why = "tokens verified a round: those drafted, and the one that is chosen already"
    yield _setting("--speculative-num-draft-tokens", str(draft.tokens + 1), why)


def _tensorrt(draft: ServedDraft) -> Iterator[Setting]:
    names = {"eagle3": "Eagle3", "block": "DFlash", "model": "DraftTarget", "ngram": "NGram"}
    yield _setting("speculative_config.decoding_type", names[draft.method], "how drafts are made")
    yield _setting("speculative_config.max_draft_len", str(draft.tokens), "tokens drafted a round, as measured")
    if draft.method == "ngram":
        why = "tokens that are looked up at most"
        yield _setting("speculative_config.max_matching_ngram_size", str(draft.longest), why)
    else:
        yield _setting("speculative_config.speculative_model", draft.folder, _why(draft))
    if draft.method == "eagle3":
        why = "layers whose outputs the draft reads; it takes them from here and not from the draft"
        yield _setting("speculative_config.eagle3_layers_to_capture", json.dumps(list(draft.taps)), why)
    if draft.method in ("model", "ngram"):
        yield _setting("disable_overlap_scheduler", "true", "this kind of draft is made between two steps")


def _transformers(draft: ServedDraft) -> Iterator[Setting]:
    if draft.method == "ngram":
        why = "of `generate`: tokens drafted a round by looking up the last ones in the text"
        yield _setting("prompt_lookup_num_tokens", str(draft.tokens), why)
        yield _setting(
            "max_matching_ngram_size", str(draft.longest), "of `generate`: tokens that are looked up at most"
        )
    else:
        why = "of `generate`: the draft in the artifact, loaded with from_pretrained"
        yield _setting("assistant_model", draft.folder, why)
        yield _setting("num_assistant_tokens", str(draft.tokens), "of the draft's generation_config: as measured")


def _llama_cpp(draft: ServedDraft) -> Iterator[Setting]:
    yield _setting("--model-draft", f"{draft.folder}.gguf", "the draft in the artifact, after conversion to GGUF")
    yield _setting("--spec-draft-n-max", str(draft.tokens), "tokens drafted a round, as measured; once --draft-max")


def _why(draft: ServedDraft) -> str:
    if draft.method == "ngram":
        return "what followed the same tokens before is drafted; no draft is loaded"
    return f"the folder `{draft.folder}` of the artifact, {draft.tokens} tokens a round as measured"


def _setting(name: str, value: str, why: str) -> Setting:
    return Setting(name=name, value=value, why=why)


_ENGINES: dict[EngineName, Callable[[ServedDraft], Iterator[Setting]]] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "tensorrt-llm": _tensorrt,
    "transformers": _transformers,
    "llama.cpp": _llama_cpp,
}
_LOADS: dict[EngineName, tuple[str, ...]] = {
    "vllm": ("eagle3", "medusa", "block", "model", "ngram"),
    "sglang": ("eagle3", "block", "model", "ngram"),
    "tensorrt-llm": ("eagle3", "block", "model", "ngram"),
    "transformers": ("model", "ngram"),
    "llama.cpp": ("model",),
}
"""No engine loads an `mtp` layer from a folder of its own; TensorRT-LLM had Medusa in its old backend alone. llama.cpp
has drafts of its own for more kinds, in GGUF files that its converter does not make of these folders unaided."""
