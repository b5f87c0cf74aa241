"""A new draft for a target, with weights to begin with."""

from typing import TYPE_CHECKING

import torch

from optcore.drafts.block import Block
from optcore.drafts.checks import refused
from optcore.drafts.eagle3 import Eagle3
from optcore.drafts.medusa import Medusa
from optcore.drafts.mtp import Mtp
from optcore.drafts.parts import DraftParts
from optcore.drafts.sizes import Sizes
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


def rebuilt_draft(parts: DraftParts, target: AnyTarget) -> "AnyDraft":
    """The draft that was taken apart, as large as it was, in float32 on the target's device.

    Raises `BadCheckpoint` for one that does not fit the target.
    """
    vocabulary = DraftVocabulary(parts.vocabulary.ids_D.to(target.device), parts.vocabulary.size)
    if (width := parts.sizes["hidden_size"]) != target.width:
        raise refused(f"says hidden_size: {width}, and its target has {target.width}")
    with torch.random.fork_rng(devices=[]):  # what is drawn for the new parameters is written over
        draft = _shaped(parts, target, vocabulary).to(target.device)
    try:
        draft.load_state_dict(parts.tensors)
    except RuntimeError as error:
        raise refused(f"does not fit its target: {error}") from error
    return draft


def outlined_draft(technique: "Draft", outline: TargetOutline, size: int) -> "AnyDraft":
    """The shapes of a new draft that says `size` tokens, on the meta device."""
    return build_draft(technique, outline, DraftVocabulary(torch.arange(size), outline.vocabulary))


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


def _shaped(parts: DraftParts, target: AnyTarget, vocabulary: DraftVocabulary) -> "AnyDraft":
    if parts.method == "medusa":
        return Medusa(target, vocabulary, parts.tokens, depth=parts.count("blocks.0.layers."))
    sizes = Sizes.model_validate(parts.sizes)
    match parts.method:
        case "eagle3":
            return Eagle3(sizes, parts.taps, vocabulary, target.embeddings.weight)
        case "mtp":
            return Mtp(target, vocabulary, sizes=sizes)
    layers, mask = parts.count("layers."), parts.mask_token
    return Block(target, vocabulary, parts.tokens, layers=layers, mask_token=mask, sizes=sizes)


def _eagle3(technique: "Draft", target: AnyTarget, vocabulary: DraftVocabulary) -> Eagle3:
    """Its head begins as the target's rows of the draft vocabulary, as speculators' does, which reads what the final
    norm gives; SpecForge and EAGLE begin at random."""
    sizes = Sizes.of(target.model.config.get_text_config(), normed=technique.layout == "speculators")
    with target.device:
        draft = Eagle3(sizes, target.taps, vocabulary, target.embeddings.weight)
    assert target.head is not None  # the stage looks after that
    with torch.no_grad():
        draft.lm_head.weight.copy_(target.head.linear.weight[vocabulary.ids_D])
    return draft
