"""Linear layers that an engine fuses into one matrix, found by watching which ones are given the same tensor.

q/k/v, gate/up, MLA's q_a/kv_a and every expert's gate/up come out of the same rule, with no list of names.
"""

import torch
from torch import nn

from optcore.streaming.decoder import Decoder, State
from optcore.streaming.experts import Expert, Experts, decides

_PROBE_tokens = 8


def linears(layer: nn.Module) -> dict[str, nn.Linear]:
    """The layer's linear modules by their path in it, expert routers left out."""
    routers = {id(router) for block in layer.modules() for router in _routers(block)}
    found = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    return {name: module for name, module in found.items() if id(module) not in routers}


def _routers(block: nn.Module) -> list[nn.Linear]:
    """Linears beside a block's experts that decide about them: its own, and those of what has a row for each expert."""
    experts = next((child for child in block.children() if isinstance(child, Experts)), None)
    if experts is None:
        return []
    siblings = [child for child in block.children() if child is not experts]
    own = [child for child in siblings if isinstance(child, nn.Linear)]
    routers = [child for child in siblings if decides(child, len(experts))]
    return own + [module for router in routers for module in router.modules() if isinstance(module, nn.Linear)]


def probe_state(decoder: Decoder) -> State:
    """A few tokens' hidden states to call any layer with."""
    vocabulary = decoder.model.config.get_text_config().vocab_size
    return decoder.embed(torch.arange(_PROBE_tokens)[None] % vocabulary)


def fused_groups(decoder: Decoder, index: int, layer: nn.Module, probe: State) -> list[list[str]]:
    """Paths of the layer's linears, siblings with a common input together, in the order of the layer.

    Attention and feed-forward side by side (Cohere, Phi) read one input and are not siblings. A linear counts by its
    first call (DeBERTa's projections have two); one that is never called, whose weight is used in some other way
    (Mamba's `dt_proj`), is left out: no engine would look for its codes.
    """
    seen: dict[tuple[int, str], list[str]] = {}
    first_inputs: dict[str, torch.Tensor] = {}  # kept, so that no address is given out twice while we compare them

    def note(name: str, given: torch.Tensor) -> None:
        if name not in first_inputs:
            first_inputs[name] = given
            seen.setdefault((id(given), name.rpartition(".")[0]), []).append(name)

    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
        for name, module in linears(layer).items()
    ]
    decoder.forward(index, layer, probe)
    for name, module in layer.named_modules():
        if isinstance(module, Expert) and not any(f"{name}.up_proj" in names for names in seen.values()):
            weight = module.up_proj.weight  # the layer may be a float32 copy of what the decoder runs
            module(torch.zeros(1, weight.shape[1], dtype=weight.dtype, device=weight.device))
    for handle in handles:
        handle.remove()
    return list(seen.values())
