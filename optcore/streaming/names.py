"""Names of tensors in a checkpoint against names of parameters in the skeleton.

transformers loads some checkpoints under other names (Mixtral's `block_sparse_moe.experts.0.w1` becomes a slice of
`mlp.experts.gate_up_proj`). Its own conversion rules are read here, so no architecture is listed by hand.
"""

import re

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming

_FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


class NameMap:
    """Maps a checkpoint's tensor names to the parameters of a skeleton whose experts are not fused."""

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        rules = get_model_conversion_mapping(model, add_legacy=False)
        self._renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        self._experts = [pair for rule in rules if isinstance(rule, WeightConverter) for pair in _expert_rules(rule)]
        self.stored_name = {self.parameter_name(name): name for name in names}
        """Checkpoint name by parameter name."""

    def parameter_name(self, stored: str) -> str:
        """The parameter that a checkpoint's tensor fills."""
        name = stored
        for rule in self._renamings:
            name, _ = rule.rename_source_key(name)
        for pattern, replacement in self._experts:
            name = pattern.sub(replacement, name)
        return name

    def stored_module(self, module: str) -> str:
        """The checkpoint's name of a linear layer: where its scales go."""
        return self.stored_name[f"{module}.weight"].removesuffix(".weight")


def _expert_rules(rule: WeightConverter) -> list[tuple[re.Pattern[str], str]]:
    """Pattern and replacement per projection of a rule such as `experts.*.w1, experts.*.w3 -> experts.gate_up_proj`."""
    prefix, _, fused = rule.target_patterns[0].rpartition(".")
    projections = _FUSED.get(fused, ())
    sources = [source.removesuffix("$") for source in rule.source_patterns]
    if len(sources) != len(projections):
        return []
    patterns = [re.compile(re.escape(source).replace(r"\*", r"(\d+)") + "$") for source in sources]
    replacements = [rf"{prefix}.\g<1>.{projection}.weight" for projection in projections]
    return list(zip(patterns, replacements, strict=True))
