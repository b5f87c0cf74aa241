"""A checkpoint with the shapes of a Llama and random values, written a layer at a time."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.gpu.floors import Llama

HEAD_channels = 128
SPREAD = 0.02
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def write_random_llama(folder: Path, model: Llama, tokenizer: Path, device: torch.device) -> None:
    """Weights in bfloat16, N(0, 0.02), the same on each device of a kind; the tokenizer is that of another model."""
    random = torch.Generator(device).manual_seed(0)
    files: dict[str, str] = {}
    for name, shapes in _files(model):
        tensors = {key: _values(shape, random, device) for key, shape in shapes.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        files |= dict.fromkeys(shapes, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    (folder / "config.json").write_text(json.dumps(_config(model)))
    for name in TOKENIZER:
        shutil.copy(tokenizer / name, folder / name)


def _files(model: Llama) -> Iterator[tuple[str, dict[str, tuple[int, ...]]]]:
    """File names, and the shapes in each."""
    d, f, k = model.hidden, model.inner, model.keys
    for layer in range(model.layers):
        attention = {"q_proj": (d, d), "k_proj": (k, d), "v_proj": (k, d), "o_proj": (d, d)}
        shapes: dict[str, tuple[int, ...]] = {f"self_attn.{name}.weight": shape for name, shape in attention.items()}
        shapes |= {"mlp.gate_proj.weight": (f, d), "mlp.up_proj.weight": (f, d), "mlp.down_proj.weight": (d, f)}
        shapes |= {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
        yield f"layer-{layer}.safetensors", {f"model.layers.{layer}.{name}": shape for name, shape in shapes.items()}
    tables = {"model.embed_tokens.weight": (model.vocabulary, d), "lm_head.weight": (model.vocabulary, d)}
    yield "outside.safetensors", tables | {"model.norm.weight": (d,)}


def _values(shape: tuple[int, ...], random: torch.Generator, device: torch.device) -> torch.Tensor:
    if len(shape) == 1:  # a norm
        return torch.ones(shape, dtype=torch.bfloat16)
    return (torch.randn(shape, generator=random, device=device, dtype=torch.bfloat16) * SPREAD).cpu()


def _config(model: Llama) -> dict[str, object]:
    width = min(HEAD_channels, model.keys)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.hidden,
        "intermediate_size": model.inner,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.hidden // width,
        "num_key_value_heads": model.keys // width,
        "head_dim": width,
        "vocab_size": model.vocabulary,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
