"""What techniques take that measure a model on text and change its weights, one layer after the other.

Legend: N outputs and K inputs of a linear layer, T tokens of calibration text.
"""

from collections.abc import Iterable, Iterator

from optcore.estimate.constants import ROUNDING_bytes
from optcore.estimate.facts import ModelFacts, Tensor
from optcore.estimate.shared import BATCH_tokens, forward, layer_peak, spilled, states
from optcore.estimate.stored import Model
from optcore.estimate.work import Cost, Memory, Work
from optcore.mixes import base_of
from optcore.references import Calibration
from optcore.schemes import GGML_FORMATS, PRESETS, QuantArgs
from optcore.techniques import AutoQuantize, LowRank, Ptq, Rotate, Sparsify, Technique
from optcore.techniques.ptq import Quantizing

_CANDIDATES = {"int": 34, "uint": 30, "iq": 20, "float": 31, "nf": 31}
"""Scales that a search tries, by the kind of the codes (`algorithms.scale_search`)."""
_TRIED_values = 7
"""Values that one of them reads or writes for each of the weight's."""
_FAMILY_members = 11
"""Members of a family of channel scales that are tried (`algorithms.smoothing`)."""
_SAMPLED_rows = 128
_SKELETON_calls = 600.0
"""What a layer's modules take to be made for one axis that is cut, as calls of a layer."""


def tokens_of(calibration: Calibration, facts: ModelFacts) -> tuple[int, int]:
    """Calibration tokens, and the length of a window."""
    length = min(calibration.sequence_length, facts.positions)
    return calibration.samples * length, length


def quantizing(technique: Quantizing, model: Model, result: Model, calibration: Calibration) -> Cost:
    """Of `ptq`, or of choosing formats and then applying them."""
    facts = model.facts
    names = [technique.scheme, *technique.also] if isinstance(technique, Ptq) else ["nvfp4"]
    tokens, length = tokens_of(calibration, facts)
    work, has_text = Work(), technique.measures_gram or technique.kv_cache is not None
    has_text = has_text or any(PRESETS[base_of(name)].needs_calibration for name in names)
    if has_text:
        work = work.plus(_measuring(technique, facts, tokens, length, names[0]))
    for name in names:
        work = work.plus(_rounding(technique, facts, name))
    written = result.weight_bytes * len(names)
    work = work.plus(Work((), disk=facts.weight_bytes + written, values=8.0 * facts.parameters * len(names)))
    kind, scratch = f"ptq {_how(technique, names[0])}", _spill(technique, facts, tokens)
    if isinstance(technique, AutoQuantize):
        kind, work = "auto_quantize", work.plus(_scoring(technique, facts, length))
    return Cost(
        kind,
        work,
        _memory(technique, facts, tokens if has_text else 0, length),
        written + scratch,
        scratch=scratch,
    )


def _how(technique: Quantizing, scheme: str) -> str:
    if base_of(scheme) in GGML_FORMATS:
        return f"{technique.rounding} blocks"
    return technique.rounding


def measuring(technique: Technique, facts: ModelFacts, calibration: Calibration) -> Cost:
    """Of a technique that sends text through the model once or twice and writes what is left of it."""
    tokens, length = tokens_of(calibration, facts)
    passes = 2 + 2 * getattr(technique, "depth", 0) * (getattr(technique, "order", "") == "divergence")
    work = Work().plus(forward(facts, tokens, length).times(passes))
    # Skeletons of each size that is tried are built, and what is written is held against what it was made of.
    calls = _SKELETON_calls * (1 + len(getattr(technique, "sliced", ()))) * facts.layers
    work = work.plus(Work((), disk=3 * facts.weight_bytes, values=30.0 * facts.parameters, calls=calls))
    if isinstance(technique, Sparsify | LowRank):
        work = work.plus(_solving(facts, sweeps=0))
    name = str(getattr(technique, "technique", type(technique).__name__))
    memory = Memory(host=states(facts, tokens, 2), device=layer_peak(facts, length), exact=_grams(facts, 1))
    scratch = spilled(facts, tokens, 2)
    return Cost(name, work, memory, facts.weight_bytes + scratch, scratch=scratch)


def rewriting(technique: Technique, facts: ModelFacts) -> Cost:
    """Of a technique that needs no text: it reads and writes every weight."""
    work = Work(disk=3 * facts.weight_bytes, values=40.0 * facts.parameters, calls=4.0 * facts.layers)
    if isinstance(technique, Rotate):
        work = work._replace(flops=4.0 * facts.hidden * sum(one.elements for one in facts.linears))
    name = str(getattr(technique, "technique", type(technique).__name__))
    return Cost(name, work, Memory(device=layer_peak(facts, 1, 1)), facts.weight_bytes)


def activation_values(facts: ModelFacts, scheme: str | None, tokens: float) -> float:
    """Values that rounding activations reads and writes."""
    own = PRESETS[base_of(scheme)].activations if scheme else None
    if own is None:
        return 0.0
    each = 40 if own.type == "float" and own.bits == 4 else 10
    return each * tokens * sum(one.matrix[1] * one.copies for one in facts.linears) * _share(facts)


def _measuring(technique: Quantizing, facts: ModelFacts, tokens: int, length: int, scheme: str) -> Work:
    """Forward passes and second moments; an asymmetric target measures group after group in both models."""
    asymmetric = bool(technique.feedback.asymmetry)
    passes = 4.2 if asymmetric else 1.7 if technique.propagate == "quantized" else 1.0
    moments = 0.0
    if technique.measures_gram:
        moments = sum(2.0 * width**2 for width in _inputs(facts)) * tokens * (2 if asymmetric else 1) * _share(facts)
    work = forward(facts, tokens, length).times(passes)
    work = work.plus(Work((), flops=moments, values=10.0 * tokens * sum(_inputs(facts)) * _share(facts)))
    rounded = activation_values(facts, scheme, tokens) if technique.propagate == "quantized" else 0.0
    return work.plus(Work((), values=rounded * (1.7 if asymmetric else 1.0)))


def _rounding(technique: Quantizing, facts: ModelFacts, scheme: str) -> Work:
    args, weights = PRESETS[base_of(scheme)].weights, sum(one.elements for one in facts.linears)
    tried = _tried(technique, args)
    matrices = sum(one.copies for one in facts.linears)
    work = Work((), values=weights * (12 + tried * _TRIED_values), calls=matrices * (1 + tried / 20))
    if technique.smoothing != "none":
        families = 2 if technique.smoothing == "awq" else 1
        sampled = sum(min(one.matrix[0], _SAMPLED_rows) * one.matrix[1] * one.copies for one in facts.linears)
        whole = sum(2.0 * one.elements * one.matrix[1] for one in facts.linears)
        sampled_flops = sum(2.0 * _SAMPLED_rows * one.matrix[1] ** 2 * one.copies for one in facts.linears)
        members = _FAMILY_members * families
        tries = Work(
            (),
            flops=members * sampled_flops + 2 * whole,
            values=(members * sampled + 2 * weights) * max(1, tried) * _TRIED_values,
            calls=members * matrices * (1 + tried / 20),
        )
        work = work.plus(tries)
    if technique.rounding == "gptq":
        work = work.plus(_solving(facts, technique.gptq.sweeps))
    return work


def _solving(facts: ModelFacts, sweeps: int) -> Work:
    """Error feedback through the inverse of the second moments, column after column, and sweeps of descent."""
    linears, passes = facts.linears, 1 + sweeps
    flops = sum(
        one.copies * (passes * 2.0 * one.matrix[0] * one.matrix[1] ** 2 + one.matrix[1] ** 3) for one in linears
    )
    columns = sum(one.copies * one.matrix[1] for one in linears) * passes
    return Work((), flops=flops, columns=columns, values=8.0 * passes * sum(one.elements for one in linears))


def _scoring(technique: AutoQuantize, facts: ModelFacts, length: int) -> Work:
    """Each candidate's error, weighed by gradients of a few windows."""
    tokens = min(technique.score_samples * length, 10**7)
    rounds = Work((), values=len(technique.candidates) * 40.0 * sum(one.elements for one in facts.linears))
    return forward(facts, tokens, length).times(3 + len(technique.candidates)).plus(rounds)


def _tried(technique: Quantizing, args: QuantArgs) -> int:
    if technique.scale_search not in ("mse", "hessian"):
        return 0
    if args.scale_type in ("super", "f16"):
        return 12
    if args.scale_type == "e4m3":
        return 13
    if args.scale_type == "e8m0":
        return 2
    return 27 if args.type == "int" and args.bits == 8 else _CANDIDATES[args.type]


def _memory(technique: Quantizing, facts: ModelFacts, tokens: int, length: int) -> Memory:
    copies = 2 if technique.feedback.asymmetry else 1
    largest = max((one.matrix for one in facts.linears), key=lambda shape: shape[0] * shape[1], default=(1, 1))
    rows, columns = largest
    exact = 4.0 * 4 * rows * columns
    if technique.measures_gram:
        exact += _grams(facts, copies) + 4.0 * (6 * columns**2 + 7 * rows * columns) * (technique.rounding == "gptq")
    simulated = 4.0 * facts.largest_layer * (2 if technique.smoothing != "none" else 1)
    between = max(1, min(tokens, BATCH_tokens))
    exact += ROUNDING_bytes * (technique.rounding == "gptq")
    return Memory(
        host=states(facts, tokens, copies), device=layer_peak(facts, length, between), exact=exact + simulated
    )


def _spill(technique: Quantizing, facts: ModelFacts, tokens: int) -> float:
    return spilled(facts, tokens, 2 if technique.feedback.asymmetry else 1)


def _grams(facts: ModelFacts, copies: int) -> float:
    """Bytes of the second moments of a layer's inputs."""
    layer = max(range(facts.layers), key=lambda index: facts.layer_parameters[index], default=0)
    return 4.0 * copies * sum(width**2 for width in _inputs(facts, layer))


def _inputs(facts: ModelFacts, layer: int | None = None) -> list[int]:
    """Widths of the inputs that are measured: siblings of one width share one, but for an attention's output."""
    return list(_distinct(one for one in facts.linears if layer in (None, one.layer)))


def _distinct(linears: Iterable[Tensor]) -> Iterator[int]:
    seen = set[tuple[str, int, bool]]()
    for one in linears:
        parent, _, leaf = one.module.rpartition(".")
        key = (parent, one.matrix[1], leaf.startswith(("o_", "out_", "dense", "wo", "down", "fc2", "w2", "c_proj")))
        if key not in seen:
            seen.add(key)
            yield from [one.matrix[1]] * one.copies


def _share(facts: ModelFacts) -> float:
    """Of a layer's inputs that a token is one of: it meets some of the experts."""
    whole = sum(one.elements for one in facts.linears)
    return facts.active / whole if whole else 1.0
