"""Names of tensors in a checkpoint against names of parameters in the skeleton.

transformers loads some checkpoints under other names (Mixtral's `block_sparse_moe.experts.0.w1` becomes a slice of
`mlp.experts.gate_up_proj`). Its own conversion rules are read here, so no architecture is listed by hand.

A checkpoint that holds all experts of a layer in one 3-D tensor (gpt-oss, GraniteMoE) has no name for an expert's
linear. It gets the one that engines know: below the folder of the fused tensor, `experts.<number>.gate_proj`
(`up_proj`, `down_proj`), or `experts.<number>.w1` (`w3`, `w2`) in a `block_sparse_moe`, as Mixtral spells it.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming

from optcore.streaming.experts import DOWN, GATE, UP, Experts, Part

_FUSED = {"gate_up_proj": (GATE, UP), DOWN: (DOWN,)}
_MIXTRAL = {GATE: "w1", UP: "w3", DOWN: "w2"}


class Source(NamedTuple):
    """Where a parameter's values are read."""

    stored: str
    """A tensor of the checkpoint."""
    part: Part | None = None
    """Which slice of it, where one tensor holds all experts."""
    is_halved: bool = False
    """Whether that tensor is gate and up together."""

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The parameter's values in the stored tensor, as a view."""
        return self.part.of(tensor, self.is_halved) if self.part else tensor


class NameMap:
    """Maps a checkpoint's tensor names to the parameters of a skeleton whose experts are not fused."""

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        rules = get_model_conversion_mapping(model, add_legacy=True)
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._experts = [pair for rule in rules if isinstance(rule, WeightConverter) for pair in _expert_rules(rule)]
        self._unknown = [rule for rule in rules if isinstance(rule, WeightConverter) and not _expert_rules(rule)]
        self._fused = {name: module for name, module in model.named_modules() if isinstance(module, Experts)}
        self._parameters = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
        self._base = f"{model.base_model_prefix}."
        self.sources: dict[str, Source] = {}
        """Where each parameter is read."""
        self.stored_name: dict[str, str] = {}
        """Checkpoint name by parameter name; an expert's own name where the checkpoint has all of them in one."""
        for stored in names:
            self._add(stored)

    def stored_module(self, module: str) -> str:
        """The checkpoint's name of a linear layer: where its scales go."""
        return self.stored_name[f"{module}.weight"].removesuffix(".weight")

    @property
    def own_modules(self) -> dict[str, str]:
        """The model's name of each linear layer by the checkpoint's, experts aside."""
        own_names = (name for name in self.stored_name if name.endswith(".weight") and ".experts." not in name)
        modules = (name.removesuffix(".weight") for name in own_names)
        return {self.stored_module(module): module for module in modules}

    def _add(self, stored: str) -> None:
        if any(rule.rename_source_key(stored)[1] for rule in self._unknown):
            return  # its values would have to be rearranged in a way that we do not know
        name = self._placed(self._converted(stored))
        container, _, leaf = name.rpartition(".")
        experts = self._fused.get(container)
        if experts is None:
            self.stored_name[name], self.sources[name] = stored, Source(stored)
            return
        for parameter, own_name, source in _slices(stored, container, leaf, experts):
            self.stored_name[parameter], self.sources[parameter] = own_name, source

    def _placed(self, name: str) -> str:
        """The name below the base model where a checkpoint was saved without its head, or the other way round."""
        other = name.removeprefix(self._base) if name.startswith(self._base) else self._base + name
        return other if self._is_known(other) and not self._is_known(name) else name

    def _is_known(self, name: str) -> bool:
        return name in self._parameters or name.rpartition(".")[0] in self._fused

    def _converted(self, stored: str) -> str:
        name = stored
        for rule in self._renamings:
            name, _ = rule.rename_source_key(name)
        for pattern, replacement in self._experts:
            name = pattern.sub(replacement, name)
        return name


def _slices(stored: str, container: str, leaf: str, experts: Experts) -> Iterator[tuple[str, str, Source]]:
    """Parameter, the name that engines know, and the source of every expert's share of a fused tensor."""
    kind = "bias" if leaf.endswith("_bias") else "weight"
    fused = leaf.removesuffix("_bias")
    for projection in _FUSED.get(fused, (fused,)):
        for number in range(len(experts)):
            source = Source(stored, Part(number, projection, experts.layout), fused == "gate_up_proj")
            own_name = f"{_expert_name(stored, number, projection)}.{kind}"
            yield f"{container}.{number}.{projection}.{kind}", own_name, source


def _expert_name(stored: str, number: int, projection: str) -> str:
    folder = stored.removesuffix(".weight").rpartition(".")[0]
    spelled = _MIXTRAL.get(projection, projection) if folder.endswith("block_sparse_moe") else projection
    return f"{folder.removesuffix('.experts')}.experts.{number}.{spelled}"


def _expert_rules(rule: WeightConverter) -> list[tuple[re.Pattern[str], str]]:
    """Pattern and replacement per projection of a rule such as `experts.*.w1, experts.*.w3 -> experts.gate_up_proj`."""
    prefix, _, fused = rule.target_patterns[0].rpartition(".")
    projections = _FUSED.get(fused, (fused,) if fused == UP else ())
    sources = [source.removesuffix("$") for source in rule.source_patterns]
    if len(sources) != len(projections) or not all("*" in source for source in sources):
        return []
    patterns = [re.compile(re.escape(source).replace(r"\*", r"(\d+)") + "$") for source in sources]
    replacements = [rf"{prefix}.\g<1>.{projection}.weight" for projection in projections]
    return list(zip(patterns, replacements, strict=True))
