"""What a chain's result will weigh, where that is counted: nobody is refused on a guess."""

from typing import NamedTuple

from optcore.estimate.changes import after
from optcore.estimate.facts import ModelFacts
from optcore.estimate.stored import Model, least_bytes
from optcore.recipe import Recipe
from optcore.techniques import Prune, Ptq, Technique
from optcore.techniques.dense_training import DenseTraining
from optcore.techniques.quantization_aware import QuantizationAware

_GUESSED = frozenset({"compact", "onnx"})
"""Targets whose files are as small as the values let them, or hold more than weights."""


class Weight(NamedTuple):
    """Of a result."""

    size: int
    """Bytes of the files that hold its weights, or a little less."""
    parameters: int


def weigh(recipe: Recipe, facts: ModelFacts) -> Weight | None:
    """What the main result will take; None where the chain, the target or the model leaves it open."""
    if not facts.is_known or recipe.target.format in _GUESSED:
        return None
    model = Model(facts)
    for number, technique in enumerate(recipe.chain):
        if not _is_counted(technique, model.facts):
            return None
        if not technique.stands_beside:
            model = after(technique, model, {}, f"/chain/{number}")
    return Weight(least_bytes(model, recipe.target), model.facts.parameters)


def _is_counted(technique: Technique, facts: ModelFacts) -> bool:
    """Whether what an entry leaves is known by its shapes alone: which layers a pruning takes does not matter where all
    are alike."""
    if isinstance(technique, Ptq):
        return not (technique.ignore or technique.overrides)
    if isinstance(technique, Prune):
        is_by_depth = not (technique.target or technique.cuts or technique.experts)
        return is_by_depth and len(set(facts.layer_parameters)) == 1
    if isinstance(technique, DenseTraining):
        return technique.stands_beside or technique.keeps_sizes
    return technique.stands_beside or isinstance(technique, QuantizationAware)
