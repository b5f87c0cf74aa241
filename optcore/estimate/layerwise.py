"""What training one decoder layer after the other takes (`scope: block`).

Legend: T tokens of a window, V vocabulary.
"""

from optcore.estimate.facts import ModelFacts
from optcore.estimate.shared import (
    OPTIMIZER_values,
    ROUNDED_values,
    forward,
    head,
    layer_peak,
    logits_peak,
    spilled,
    states,
)
from optcore.estimate.work import Cost, Memory, Work
from optcore.techniques.quantization_aware import QuantizationAware
from optcore.training.footprint import footprint


def layerwise_cost(technique: QuantizationAware, facts: ModelFacts, length: int, micro: int, kind: str) -> Cost:
    """All layers' steps are those of the model, without its head; beside them it is measured before and after."""
    held_out = technique.held_out * length
    text = technique.windows * length + held_out
    looks = technique.steps // max(1, technique.validate_every) + 1
    work = Work(disk=2 * facts.weight_bytes, values=20.0 * facts.parameters)
    work = work.plus(_step(technique, facts, length, micro).times(technique.steps))
    work = work.plus(forward(facts, held_out, length).times(looks + 4)).plus(head(facts, held_out).times(4))
    work = work.plus(forward(facts, text, length).times(2))  # in high precision, and as it was written
    memory = layerwise_memory(technique, facts, length, micro)
    return Cost(kind, work._replace(starts=("transformers",)), memory, facts.weight_bytes + spilled(facts, text, 2))


def layerwise_memory(technique: QuantizationAware, facts: ModelFacts, length: int, micro: int) -> Memory:
    """A layer that trains beside the dense one, its rounded weights, and the states of all text, twice; nothing is
    saved on the way."""
    tokens = min(micro, technique.batch) * length
    text = (technique.windows + technique.held_out) * length
    between = tokens * (16.0 * facts.hidden + 6.0 * facts.intermediate * max(1, facts.experts_chosen))
    exact = footprint(technique, facts.tensors).host(1) + 8.0 * facts.largest_layer + logits_peak(facts, 2)
    device = 4.0 * between + layer_peak(facts, length, tokens)
    return Memory(exact=exact, device=device, host=states(facts, text, 2))


def _step(technique: QuantizationAware, facts: ModelFacts, length: int, micro: int) -> Work:
    """Of every layer once: forward, and twice as much back."""
    tokens, batch = technique.batch * length, min(technique.batch, micro) * length
    passes = max(1.0, tokens / batch)
    weights = sum(one.elements for one in facts.linears)
    values = ROUNDED_values * weights * passes + OPTIMIZER_values * sum(facts.layer_parameters)
    rounded = Work((), values=values, calls=passes * len(facts.linears) / 2 + facts.layers)
    return forward(facts, tokens, length, batch=batch).times(3).plus(rounded)
