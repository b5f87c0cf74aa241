"""What measuring takes: predictions compared side by side, and models run by the engines that serve them."""

from collections.abc import Sequence

from optcore.estimate.calibrating import activation_values
from optcore.estimate.drafting import acceptance_work
from optcore.estimate.facts import ModelFacts
from optcore.estimate.shared import BATCH_tokens, decoding, forward, head, layer_peak, logits_peak, spilled, states
from optcore.estimate.stored import Model
from optcore.estimate.work import Cost, Memory, Work
from optcore.evaluate import Acceptance, AnyEvaluator, Classification, Engines, Fidelity, LongContext, Throughput
from optcore.frozen import tag
from optcore.runners import CPU_TARGETS

_ENGINE_starts = {"gguf": "none", "onnx": "torch"}
"""What a process of the engine that serves a target takes to start, as another that is known."""


def evaluating(
    kind: str,
    evaluators: Sequence[AnyEvaluator],
    source: ModelFacts,
    result: Model,
    *,
    searched: bool = False,
    target: str = "",
    draft: float = 0.0,
) -> Cost:
    """Of one stage with these evaluators, one after the other in one process; engines run in others."""
    work, peaks, names, disk = Work(()), list[Memory](), list[str](), 0.0
    for evaluator in evaluators:
        own, memory, own_disk = _measured(evaluator, source, result, searched=searched, target=target, draft=draft)
        work, disk = work.plus(own), disk + own_disk
        peaks.append(memory)
        names.append(tag(type(evaluator)))
    alone = all(isinstance(each, Throughput) for each in evaluators)
    base = "none" if alone else "transformers"
    host = max((one.host for one in peaks), default=0.0)
    loaded = max((one.loaded for one in peaks), default=0.0)
    memory = Memory(base, host=host, device=max((one.device for one in peaks), default=0.0), loaded=loaded)
    starts = (base, *work.starts)
    named = "+".join(sorted(set(names))) or "nothing"
    return Cost(f"{kind} {named}", work._replace(starts=starts), memory, disk, scratch=disk)


def _measured(
    evaluator: AnyEvaluator, source: ModelFacts, result: Model, *, searched: bool, target: str, draft: float
) -> tuple[Work, Memory, float]:
    match evaluator:
        case Fidelity() | LongContext():
            return _compared(evaluator.samples, evaluator.sequence_length, source, result, searched=searched)
        case Classification():
            return _compared(evaluator.samples, 128, source, result, searched=False)
        case Acceptance():
            return *acceptance_work(evaluator, result.facts, draft), 0.0
        case Throughput() if target not in CPU_TARGETS:
            return _generated(evaluator.prompt_tokens, evaluator.new_tokens, source, result)
        case Engines():
            return _served(evaluator, source, result, target)
    return Work(()), Memory(), 0.0


def _compared(
    samples: int, sequence_length: int, source: ModelFacts, result: Model, *, searched: bool
) -> tuple[Work, Memory, float]:
    """Source, result, and the result's formats without a search, on the same text."""
    length = min(sequence_length, source.positions, result.facts.positions)
    tokens, models = samples * length, 3 if searched else 2
    is_quantized = bool(result.formats)
    work = forward(source, tokens, length).plus(forward(result.facts, tokens, length).times(models - 1))
    work = work.plus(head(source, tokens)).plus(head(result.facts, tokens).times(models - 1))
    scheme = next((name for name in result.formats.values() if isinstance(name, str)), None)
    rounded = activation_values(result.facts, scheme, tokens) * (models - 1)
    weights = 40.0 * sum(one.elements for one in result.facts.linears) * (models - 1) if is_quantized else 0.0
    calls = 12.0 * models * max(1.0, samples * length / 512) * 0.2
    work = work.plus(Work((), values=rounded + weights, disk=source.weight_bytes + result.weight_bytes, calls=calls))
    alike = source.parameters == result.facts.parameters
    device = layer_peak(source, length, min(tokens, BATCH_tokens)) + logits_peak(source, models)
    if is_quantized:
        device += 4.0 * 2 * result.facts.largest_layer
    if not alike:
        device += 4.0 * (result.facts.outside + result.facts.largest_layer)
    memory = Memory(host=states(source, tokens, models), device=device)
    return work, memory, spilled(source, tokens, models)


def _generated(prompt: int, new: int, source: ModelFacts, result: Model) -> tuple[Work, Memory, float]:
    """Two processes, each of which loads a model and writes with it."""
    work = Work(("generating", "generating"), disk=source.weight_bytes + result.weight_bytes)
    for facts in (source, result.facts):
        work = work.plus(decoding(facts, new, 1, prompt + new)).plus(forward(facts, prompt, prompt))
    decoded = 30.0 * sum(one.elements for one in result.facts.linears) if result.formats else 0.0
    return work._replace(values=work.values + decoded * (1 + new)), Memory("none", loaded=source.weight_bytes), 0.0


def _served(evaluator: Engines, source: ModelFacts, result: Model, target: str) -> tuple[Work, Memory, float]:
    length = min(evaluator.sequence_length, source.positions)
    tokens = evaluator.samples * length
    engines = 2 if evaluator.source else 1
    starts = (_ENGINE_starts.get(target, "generating"), *(("generating",) if evaluator.source else ()))
    work = Work(starts, disk=source.weight_bytes + result.weight_bytes)
    work = work.plus(forward(source, tokens, length).plus(head(source, tokens)).times(1 + engines)._replace(starts=()))
    for _ in range(3 * engines):
        work = work.plus(decoding(source, evaluator.new_tokens, 1, length))
    peak = layer_peak(source, length, tokens) + 4.0 * tokens * source.vocabulary
    return work, Memory(device=max(peak, 0.0), host=0.0), 4.0 * tokens * source.vocabulary
