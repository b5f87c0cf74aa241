"""Adapters on a student's linear layers, made by PEFT, and their part in the weight that comes out.

Beside a dense weight, or one in NF4 codes, an adapter computes for itself. A weight that is rounded in training is
rounded with the adapter's part in it: adding that to the codes afterwards would round a second time, and lose it.

Shapes: N outputs, K inputs of a linear layer.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from optcore.errors import RecipeError
from optcore.sparsity import Sparsity
from optcore.streaming.groups import fused_groups, probe_state
from optcore.streaming.match import is_matched, time_limit, unmatched
from optcore.streaming.simulate import module_paths
from optcore.techniques.adapters import Lora
from optcore.training.factors import FactoredLinear
from optcore.training.fake_quant import FakeQuantLinear
from optcore.training.quantized_base import QuantizedBaseLinear
from optcore.training.ranks import full
from optcore.training.student import Student, plain_path

NAME = "default"


def add_adapters(student: Student, settings: Lora, seed: int) -> None:
    """Put adapters on the layers that the settings name, and let them alone require a gradient. They start at zero.

    `student.adapters` has them afterwards. Whoever lets other parameters move does so later. Raises `RecipeError` where
    PEFT is not installed, where a pattern matches nothing, and where an adapter would be larger than its layer.
    """
    peft = library()
    places = _places(student, settings)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        for index, paths in enumerate(places):
            if paths:
                peft.inject_adapter_in_model(config_of(settings, paths), student.layers[index], NAME)
    for index, paths in enumerate(places):
        student.adapters |= {name: student.layers[index].get_submodule(path) for path, name in paths.items()}
    for module in student.adapters.values():
        if isinstance(module.base_layer, FakeQuantLinear):
            module.base_layer.merged = partial(merged_weight, module)
            module.forward = module.base_layer.__call__


def merged_weight(module: Any) -> torch.Tensor:
    """The weight with its adapter's part in it, float32 [N, K], with a gradient to the adapter."""
    base_NK, delta_NK = full(module.base_layer.weight).float(), full(module.get_delta_weight(NAME)).float()
    if getattr(module, "keeps_zeros", False):
        delta_NK = delta_NK * (base_NK != 0)
    total_NK = base_NK + delta_NK
    if NAME not in module.lora_magnitude_vector:
        return total_NK
    length_N = full(module.lora_magnitude_vector[NAME].weight).float()
    factor_N = length_N / torch.linalg.norm(total_NK.detach(), dim=1)  # a constant to the gradient, as DoRA has it
    return factor_N[:, None] * total_NK


def changed_weights(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Parameters by their path in the model without adapters, and what gives their value, wherever that may have
    changed: trained, merged with an adapter, been in codes or in factors."""
    for path, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            yield plain_path(path), partial(full, parameter)
    adapted = {path: module for path, module in model.named_modules() if hasattr(module, "lora_A")}
    for path, module in adapted.items():
        yield f"{path}.weight", partial(merged_weight, module)
    for path, module in model.named_modules():
        if isinstance(module, FactoredLinear):
            yield f"{path}.weight", module.stored_weight
        elif isinstance(module, QuantizedBaseLinear) and path.removesuffix(".base_layer") not in adapted:
            yield f"{path}.weight", partial(getattr, module, "weight")


def keep_zeros(student: Student, settings: Lora, sparse: Sparsity) -> None:
    """Let adapters of sparse weights change only what is not zero in these: each computes as what will be merged does.

    Raises `RecipeError` for a dropout: an adapter that is in the weight has no input of its own.
    """
    sources = student.decoder.names.sources
    for path, module in student.model.named_modules():
        source = sources.get(f"{path}.weight")
        if not hasattr(module, "lora_A") or source is None or source.stored not in sparse.tensors:
            continue
        if settings.dropout:
            raise RecipeError(
                "adapters of a sparse model are part of its weights, and have no input of their own to drop from",
                remedy="leave out `lora.dropout`",
                field="/chain",
            )
        module.keeps_zeros = True
        module.forward = partial(_as_merged, module)


def _as_merged(module: Any, x: torch.Tensor) -> torch.Tensor:
    return linear(x, merged_weight(module).to(x.dtype), module.base_layer.bias)


def config_of(settings: Lora, targets: Iterable[str]) -> Any:
    """PEFT's configuration for modules by their whole paths; it would take a list for endings of paths."""
    common = {
        "target_modules": "|".join(map(re.escape, targets)),
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
    }
    if settings.variant == "adalora":
        ranks = {"init_r": settings.first_rank, "target_r": settings.rank, "total_step": 1}
        return library().AdaLoraConfig(**common, **ranks)
    return library().LoraConfig(**common, r=settings.rank, use_dora=settings.variant == "dora")


def library() -> Any:
    """PEFT, which not every machine has."""
    try:
        return import_module("peft")
    except ImportError as error:
        raise RecipeError(
            "adapters are made by PEFT, which is not installed on the machine that runs the engine",
            remedy="install it (`pip install 'peft>=0.21,<0.22'`), or choose another `scope`",
            field="/chain",
        ) from error


def _places(student: Student, settings: Lora) -> list[dict[str, str]]:
    """For each layer, paths of the linears that get an adapter, and their names in the checkpoint."""
    called = None if student.description else _called(student)
    candidates = [_candidates(student, index, called) for index in range(len(student.layers))]
    names = [name for paths in candidates for name in paths.values()]
    with time_limit():
        if lost := unmatched(settings.modules, names):
            raise RecipeError(
                f"no linear layer of the decoder matches {lost[0]!r}; the first is {names[0]}",
                remedy="correct `lora.modules`, or leave it out",
                field="/chain",
            )
        chosen = [_matched(paths, settings) for paths in candidates]
    large = [_large_enough(student.layers[index], paths, settings) for index, paths in enumerate(chosen)]
    if not any(large):
        raise _too_large(settings, "any linear layer of the decoder")
    return large


def _candidates(student: Student, index: int, called: list[set[str]] | None) -> dict[str, str]:
    """Of a quantized student its quantized layers, else every linear that is called."""
    paths = module_paths(student.decoder, index, student.layers[index])
    if called is None:
        return {path: name for path, name in paths.items() if name in student.linears}
    return {path: name for path, name in paths.items() if path in called[index]}


@torch.no_grad()
def _called(student: Student) -> list[set[str]]:
    """For each layer, paths of the linears that are more than a weight."""
    decoder, probe = student.decoder, probe_state(student.decoder)
    layers = enumerate(student.layers)
    return [{path for group in fused_groups(decoder, index, layer, probe) for path in group} for index, layer in layers]


def _matched(paths: Mapping[str, str], settings: Lora) -> dict[str, str]:
    return {path: name for path, name in paths.items() if not settings.modules or is_matched(name, settings.modules)}


def _large_enough(layer: nn.Module, paths: Mapping[str, str], settings: Lora) -> dict[str, str]:
    """Without those that are smaller than the rank, which nobody may have asked for by name."""
    kept = {}
    for path, name in paths.items():
        module = layer.get_submodule(path)
        if min(module.in_features, module.out_features) >= settings.first_rank:
            kept[path] = name
        elif settings.modules:
            raise _too_large(settings, f"{name} ({module.out_features} x {module.in_features})")
    return kept


def _too_large(settings: Lora, what: str) -> RecipeError:
    return RecipeError(
        f"an adapter of rank {settings.first_rank} is larger than {what}",
        remedy="choose a smaller `lora.rank`, or other `lora.modules`",
        field="/chain",
    )
