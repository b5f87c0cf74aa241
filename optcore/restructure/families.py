"""Which mixture of experts a dense model can become without changing what it computes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from optcore.errors import RecipeError

if TYPE_CHECKING:
    from optcore.techniques.upcycle import Upcycle

_OWN = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}


class Family(NamedTuple):
    """A mixture of experts that transformers and the engines know, and how its checkpoints spell things."""

    model_type: str
    architecture: str
    block: str
    """The folder of a layer's experts and router."""
    projections: Mapping[str, str]
    """An expert's matrices by their names in the dense model."""
    count_key: str
    """What its configuration calls the number of experts."""
    shares: bool = False
    """Whether a shared expert always adds to the chosen ones, through a sigmoid that is 1/2 at the start."""

    def settings(self, technique: "Upcycle", inner: int) -> dict[str, Any]:
        """What its configuration says that the dense model's does not."""
        found: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            self.count_key: technique.experts,
            "num_experts_per_tok": technique.top_k,
        }
        if self.model_type != "mixtral":  # Mixtral's experts are of `intermediate_size`, its gates always sum to 1
            found |= {"moe_intermediate_size": inner, "norm_topk_prob": True}
            found |= {"decoder_sparse_step": 1, "mlp_only_layers": []}
        return found | ({"shared_expert_intermediate_size": inner} if self.shares else {})


_MIXTRAL = Family(
    "mixtral",
    "MixtralForCausalLM",
    "block_sparse_moe",
    {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
    "num_local_experts",
)
FAMILIES: dict[str, Family] = {
    "llama": _MIXTRAL,
    "mistral": _MIXTRAL,
    "qwen2": Family("qwen2_moe", "Qwen2MoeForCausalLM", "mlp", _OWN, "num_experts", shares=True),
    "qwen3": Family("qwen3_moe", "Qwen3MoeForCausalLM", "mlp", _OWN, "num_experts"),
}
_CANNOT = {"llama": ("attention_bias", "mlp_bias"), "qwen2": ("use_sliding_window",), "qwen3": ("use_sliding_window",)}
"""Settings of dense models that their mixture of experts does not know."""


def family_for(config: Mapping[str, Any]) -> Family:
    """The mixture that a dense model's configuration, defaults filled in, can become. Raises `RecipeError`."""
    kind = str(config.get("model_type"))
    names = ", ".join(FAMILIES)
    if kind not in FAMILIES:
        raise RecipeError(
            f"no mixture of experts is known that computes what a dense {kind} does",
            remedy=f"use a model whose model_type is one of {names}",
            field="/chain",
        )
    if not all(str(name).endswith("ForCausalLM") for name in config.get("architectures") or ()):
        raise RecipeError(
            f"the model is {config['architectures'][0]}, and upcycling knows causal language models only",
            remedy="use a causal language model",
            field="/chain",
        )
    found = FAMILIES[kind]
    if stuck := [name for name in _CANNOT.get(kind, ()) if config.get(name)]:
        raise RecipeError(
            f"the model has `{stuck[0]}`, which {found.model_type} does not know",
            remedy=f"use a model without it, of model_type {names}",
            field="/chain",
        )
    return found
