"""A draft taken apart: what a layout writes of it, and gives back when it is read."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from optcore.architecture import layer_count, positions
from optcore.drafts.vocabulary import DraftVocabulary


class DraftParts(NamedTuple):
    """All that a draft is, without its class."""

    method: str
    """As the recipe names it."""
    tensors: dict[str, torch.Tensor]
    """By the names of the draft's `state_dict`."""
    taps: tuple[int, ...]
    """Layers of the target, from 0, whose outputs it reads; ascending, since engines gather them in that order."""
    vocabulary: DraftVocabulary
    sizes: dict[str, Any]
    """In the words of Llama's configuration: `hidden_size`, `num_attention_heads`, `num_key_value_heads`, `head_dim`,
    `intermediate_size`, `rms_norm_eps`, `rope_theta`; of `eagle3` also `norm_before_residual`."""
    tokens: int
    """Tokens drafted a round, without the one that is already chosen."""
    mask_token: int | None = None
    """Of `block`: the target's token that stands where a guess is wanted."""

    def count(self, prefix: str) -> int:
        """How many different things are named by this and a number."""
        return len({name.removeprefix(prefix).split(".")[0] for name in self.tensors if name.startswith(prefix)})


@dataclass(frozen=True)
class TargetFacts:
    """What a draft's configuration says of its target."""

    config: dict[str, Any] = field(repr=False)
    """The target's `config.json`."""
    name: str
    """Its Hub repository, or what its folder is called: it is published with the draft."""

    @property
    def text(self) -> dict[str, Any]:
        """The part about its decoder."""
        return {**self.config, **(self.config.get("text_config") or {})}

    @property
    def architectures(self) -> list[str]:
        """Names of its classes."""
        return list(self.config.get("architectures") or ())

    @property
    def layers(self) -> int | None:
        """How many its decoder has; None where the configuration does not say."""
        return layer_count(self.config)

    @property
    def longest(self) -> int:
        """Tokens that its positions reach."""
        return positions(self.config) or 2048
