"""Linear layers that an engine fuses into one matrix, found by watching which ones are given the same tensor.

q/k/v, gate/up, MLA's q_a/kv_a and every expert's gate/up come out of the same rule, with no list of names.
"""

from typing import Any

import torch
from torch import nn

from optcore.streaming.decoder import Decoder, State
from optcore.streaming.experts import Expert, Experts

_PROBE_tokens = 8


def linears(layer: nn.Module) -> dict[str, nn.Linear]:
    """The layer's linear modules by their path in it, expert routers left out."""
    routers = {
        id(child)
        for module in layer.modules()
        if any(isinstance(part, Experts) for part in module.children())
        for child in module.children()
        if isinstance(child, nn.Linear)
    }
    found = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    return {name: module for name, module in found.items() if id(module) not in routers}


def probe_state(decoder: Decoder) -> State:
    """A few tokens' hidden states to call any layer with."""
    vocabulary = decoder.model.config.get_text_config().vocab_size
    return decoder.embed(torch.arange(_PROBE_tokens)[None] % vocabulary)


def fused_groups(decoder: Decoder, index: int, layer: nn.Module, probe: State) -> list[list[str]]:
    """Paths of the layer's linears, those with a common input together, in the order of the layer."""
    seen: dict[int, list[str]] = {}
    kept_alive: list[Any] = []  # so that no address is given out twice while we compare them

    def note(name: str, given: torch.Tensor) -> None:
        kept_alive.append(given)
        seen.setdefault(id(given), []).append(name)

    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
        for name, module in linears(layer).items()
    ]
    decoder.forward(index, layer, probe)
    reached = {name for names in seen.values() for name in names}
    for name, module in layer.named_modules():
        if isinstance(module, Expert) and f"{name}.gate_proj" not in reached:
            module(torch.zeros(1, module.gate_proj.in_features, dtype=decoder.dtype, device=decoder.device))
    for handle in handles:
        handle.remove()
    return list(seen.values())
