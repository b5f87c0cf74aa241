"""The same function with a few loud channels, as large models grow them, so that smoothing has something to do.

Six channels of every norm inside the decoder layers are multiplied by 8, 16 or 32 and the columns of the linears that
read them divided by as much. Powers of two are exact in bfloat16, so both models have the same logits bit for bit.
The norm before the head stays: a tied head is the embedding too, and no peer quantizes it.
"""

import random
import shutil
from pathlib import Path

SHARED_channels = 4
OWN_channels = 2
FACTORS = (8.0, 16.0, 32.0)
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
"""Norms of a Llama layer, and who reads them."""


def write_outliers(source: Path, out: Path, seed: int = 7) -> None:
    """Copy a Llama checkpoint folder in one safetensors file to `out`, with outliers in place of its quiet channels."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            shutil.copyfile(path, out / path.name)
    tensors = load_file(source / "model.safetensors")
    with safe_open(source / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    _scale(tensors, random.Random(seed))
    save_file(tensors, out / "model.safetensors", metadata)


def _scale(tensors: dict, chosen: random.Random) -> None:
    """Channels that all layers share (as in trained models), then a layer's own."""
    norms = [name.removesuffix(".weight") for name in tensors if name.split(".")[-2] in READERS]
    width = len(tensors[norms[0] + ".weight"])
    shared = chosen.sample(range(width), SHARED_channels)
    others = sorted(set(range(width)) - set(shared))
    for norm in sorted(norms):
        layer, _, kind = norm.rpartition(".")
        for place, channel in enumerate(shared + chosen.sample(others, OWN_channels)):
            factor = FACTORS[place % len(FACTORS)]
            tensors[norm + ".weight"][channel] *= factor
            for reader in READERS[kind]:
                tensors[f"{layer}.{reader}.weight"][:, channel] /= factor
