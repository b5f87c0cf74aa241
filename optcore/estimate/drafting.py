"""What a speculative draft takes: its windows are `training`'s, its steps and its measurement are here."""

from optcore.estimate.facts import ModelFacts
from optcore.estimate.shared import decoding, forward, layer_peak
from optcore.estimate.training import whole
from optcore.estimate.work import Cost, Memory, Work
from optcore.evaluate import Acceptance
from optcore.techniques.draft import Draft
from optcore.training.footprint import beside

_MICRO_tokens = 4096


def draft_parameters(technique: Draft, target: ModelFacts) -> float:
    """Parameters of the draft that train."""
    if technique.method == "ngram":
        return 0.0
    layer, known = target.largest_layer, min(technique.vocabulary or 32_000, target.vocabulary) * target.hidden
    taps = 3 * target.hidden**2
    layers = technique.layers or (5 if technique.method == "block" else max(1, target.layers // 4))
    return {
        "eagle3": 1.3 * layer + known + taps,
        "mtp": layer + taps,
        "medusa": technique.tokens * (known + target.hidden**2),
        "block": layers * layer + taps,
        "model": layers * layer + target.outside,
    }[technique.method]


def plan_cost(target: ModelFacts) -> Cost:
    """Of finding out whether a draft can be made."""
    return Cost("draft plan", Work(calls=4.0 * target.layers), Memory(device=4.0 * target.outside))


def draft_cost(technique: Draft, target: ModelFacts, length: int) -> Cost:
    """Of training it."""
    own = draft_parameters(technique, target)
    tokens = float(technique.batch * length)
    rounds = technique.unroll if technique.method in ("eagle3", "mtp") else 1
    said = min(technique.vocabulary or 32_000, target.vocabulary) if technique.method != "mtp" else target.vocabulary
    step = Work(
        (),
        flops=tokens * rounds * 6 * own,
        values=tokens * rounds * (60.0 * target.hidden + 24.0 * said) + 14 * own,
        calls=rounds * 6.0,
    )
    if technique.features == "online":
        step = step.plus(forward(target, tokens, length, batch=min(tokens, _MICRO_tokens)))
    looks = technique.steps // max(1, technique.validate_every) + 1
    measured = technique.held_out / max(1, technique.batch) / 2
    work = Work(disk=looks * 16.0 * own + target.weight_bytes).plus(step.times(technique.steps + looks * measured))
    micro = min(tokens, _MICRO_tokens)
    read = target.parameters if technique.features == "online" else target.outside
    between = 4.0 * micro * rounds * (24.0 * target.hidden + 6.0 * target.intermediate) + 24.0 * micro * said
    memory = Memory(device=between + layer_peak(target, length, micro), trained=beside(read, own))
    return Cost(f"draft {technique.method}", work, memory, 8.0 * own)


def acceptance_work(evaluator: Acceptance, target: ModelFacts, draft: float) -> tuple[Work, Memory]:
    """Text is written greedily and sampled, guessed by the draft and by n-grams, and decoded again by turns."""
    length = evaluator.prompt_tokens + evaluator.new_tokens
    sequences = float(min(evaluator.prompts, 32))
    written = decoding(target, 2.0 * evaluator.new_tokens * max(1.0, evaluator.prompts / 32), sequences, length)
    guessed = Work((), flops=evaluator.prompts * evaluator.new_tokens * evaluator.tokens * 4 * draft)
    guessed = guessed._replace(calls=2.0 * evaluator.new_tokens * evaluator.tokens)
    work = written.plus(guessed)
    if evaluator.timed:
        for batch in evaluator.batches:
            turns = 2 * 3 * 2 * evaluator.new_tokens
            work = work.plus(decoding(target, turns, min(batch, evaluator.prompts), length))
            work = work._replace(calls=work.calls + turns * evaluator.tokens / 2)
    cache = 4.0 * target.key_values * length * sequences
    return work._replace(starts=()), Memory(device=whole(target) + 4 * draft + cache + layer_peak(target, length, 512))
