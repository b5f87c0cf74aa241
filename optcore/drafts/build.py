"""A new draft for a target, with weights to begin with."""

from typing import TYPE_CHECKING, Any

import torch

from optcore.drafts.block import Block
from optcore.drafts.eagle3 import Eagle3
from optcore.drafts.eagle3_layer import Eagle3Sizes
from optcore.drafts.medusa import Medusa
from optcore.drafts.mtp import Mtp
from optcore.drafts.vocabulary import DraftVocabulary
from optcore.speculative.outline import AnyTarget, TargetOutline

if TYPE_CHECKING:
    from optcore.drafts.draft import Draft as AnyDraft
    from optcore.techniques.draft import Draft

_BLOCK_layers = 5


def build_draft(technique: "Draft", target: AnyTarget, vocabulary: DraftVocabulary, seed: int = 0) -> "AnyDraft":
    """A draft that taps what `target` does, in float32 on its device; of the same seed the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _built(technique, target, vocabulary, seed).to(target.device)


def draft_parameters(technique: "Draft", outline: TargetOutline, size: int) -> int:
    """How many would train, for a draft vocabulary of `size`."""
    vocabulary = DraftVocabulary(torch.arange(size), outline.vocabulary)
    draft = build_draft(technique, outline, vocabulary)
    return sum(value.numel() for value in draft.parameters())


def _built(technique: "Draft", target: AnyTarget, vocabulary: DraftVocabulary, seed: int) -> "AnyDraft":
    match technique.method:
        case "eagle3":
            return _eagle3(technique, target, vocabulary)
        case "medusa":
            return Medusa(target, vocabulary, technique.tokens)
        case "mtp":
            return Mtp(target, vocabulary, seed=seed)
        case "block":
            layers, mask = technique.layers or _BLOCK_layers, technique.mask_token
            return Block(target, vocabulary, technique.tokens, layers=layers, mask_token=mask, seed=seed)
    raise ValueError(f"a draft of the method {technique.method} is not built, but taken as it is")


def _eagle3(technique: "Draft", target: AnyTarget, vocabulary: DraftVocabulary) -> Eagle3:
    """Its head begins as the target's rows of the draft vocabulary, as speculators' does, which reads what the final
    norm gives; SpecForge and EAGLE begin at random."""
    sizes = eagle3_sizes(target.model.config.get_text_config(), normed=technique.layout == "speculators")
    with target.device:
        draft = Eagle3(sizes, target.taps, vocabulary, target.embeddings.weight)
    assert target.head is not None  # the stage looks after that
    with torch.no_grad():
        draft.lm_head.weight.copy_(target.head.linear.weight[vocabulary.ids_D])
    return draft


def eagle3_sizes(config: Any, *, normed: bool = False) -> Eagle3Sizes:
    """The target's own, by its text configuration; Llama's usual ones where it has none."""
    heads = int(config.num_attention_heads)
    width = int(config.hidden_size)
    return Eagle3Sizes(
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or width // heads),
        intermediate_size=int(getattr(config, "intermediate_size", None) or 4 * width),
        rms_norm_eps=float(getattr(config, "rms_norm_eps", None) or 1e-6),
        rope_theta=_theta(config),
        norm_before_residual=normed,
    )


def _theta(config: Any) -> float:
    """The base of the target's rotary positions, without what stretches them: engines would not stretch a draft's."""
    said = getattr(config, "rope_parameters", None) or {}
    said = said.get("full_attention", said)  # of models whose layers differ
    return float(said.get("rope_theta") or 10000.0)
