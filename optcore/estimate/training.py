"""What training takes: its windows, what a teacher says of them, and the steps.

Legend: T tokens of a window, V vocabulary.
"""

from typing import NamedTuple, TypeGuard

from optcore.estimate.facts import ModelFacts
from optcore.estimate.layerwise import layerwise_cost, layerwise_memory
from optcore.estimate.shared import OPTIMIZER_values, ROUNDED_values, decoding, forward, head, layer_peak
from optcore.estimate.stored import Model
from optcore.estimate.work import Cost, Memory, Work
from optcore.techniques.distilling import Distilling
from optcore.techniques.draft import Draft
from optcore.techniques.losses import needs_teacher
from optcore.techniques.quantization_aware import QuantizationAware
from optcore.techniques.training import Training
from optcore.training.footprint import asked_alone, footprint, moving_parameters

_MICRO_tokens = 4096
_CHUNK_rows = 1024
_WRITTEN_at_once = 32
"""Windows that a model writes together."""


class Trained(NamedTuple):
    """Who is in a training stage."""

    technique: Training
    student: Model
    teacher: ModelFacts | None
    """In memory beside the student."""
    length: int
    processes: int = 1


def processes_of(technique: Training, gpus: int) -> int:
    """Processes that a machine with so many GPUs trains in, as `Training.process_count` says it of this one."""
    if technique.alone:
        return 1
    if technique.processes != "auto":
        return technique.processes
    return max(count for count in range(1, max(1, gpus) + 1) if technique.batch % count == 0)


def windows_cost(technique: Training, length: int, writer: ModelFacts) -> Cost:
    """Of preparing windows: reading text, or letting a model write it."""
    count = technique.windows + technique.held_out
    tokens = count * length
    work = Work(values=600.0 * tokens, disk=6.0 * tokens, calls=1500.0)
    kind, memory = "data text", Memory()
    if technique.data.kind in ("generated", "answers"):
        kind = f"data {technique.data.kind}"
        begun = min(technique.data.prompt_tokens, length)
        steps = max(1, length - begun) * max(1.0, count / _WRITTEN_at_once)
        work = work.plus(decoding(writer, steps, min(count, _WRITTEN_at_once), length)._replace(starts=()))
        cache = 4.0 * writer.key_values * length * min(count, _WRITTEN_at_once)
        device = cache + layer_peak(writer, length, _WRITTEN_at_once)
        memory = Memory(device=device, trained=asked_alone(writer.parameters))
    return Cost(kind, work, memory, 5.0 * tokens)


def teacher_cost(technique: Distilling, length: int, teacher: ModelFacts) -> Cost:
    """Of asking a teacher once for the likeliest tokens of every position."""
    tokens, kept = (technique.windows + technique.held_out) * length, technique.teacher_top_k or 1
    work = Work(disk=8.0 * kept * tokens).plus(forward(teacher, tokens, length)).plus(head(teacher, tokens))
    device = layer_peak(teacher, length) + 16.0 * _CHUNK_rows * teacher.vocabulary
    memory = Memory(device=device, trained=asked_alone(teacher.parameters))
    size = 2 if teacher.vocabulary <= 2**16 else 4
    return Cost("teacher", work, memory, tokens * kept * (size + 2.0))


def features_cost(technique: Draft, length: int, target: ModelFacts) -> Cost:
    """Of keeping what a target computes."""
    tokens = (technique.windows + technique.held_out) * length
    size = 2.0 if technique.feature_dtype == "bfloat16" else 4.0
    written = tokens * target.hidden * 4 * size
    work = Work(disk=written).plus(forward(target, tokens, length))
    return Cost("features", work, Memory(device=layer_peak(target, length), host=2.0**31), written)


def training_cost(trained: Trained, kind: str) -> Cost:
    """Of the steps, validations and checkpoints."""
    technique, student, length = trained.technique, trained.student.facts, trained.length
    tokens, micro = technique.batch * length, _micro(technique, length)
    if _is_layerwise(technique):
        return layerwise_cost(technique, student, length, micro, kind)
    moving = moving_parameters(technique, student.tensors)
    step = _step(trained, tokens, micro * length, moving).times(technique.steps / trained.processes)
    looks = technique.steps // max(1, technique.validate_every) + 1
    measured = technique.held_out * length
    look = _forward_of_all(trained, measured, micro * length).times(looks / trained.processes)
    saves = technique.steps // max(1, technique.checkpoint_every) + looks / 2 + 1
    kept = 12.0 * moving + 4.0 * student.outside
    work = Work(disk=saves * kept + 2 * student.weight_bytes, values=20.0 * student.parameters)
    total = work.plus(step).plus(look)
    return Cost(
        kind,
        total._replace(starts=("transformers",)),
        training_memory(trained),
        student.weight_bytes + 2 * kept,
        scratch=2 * kept,
    )


def whole(facts: ModelFacts) -> float:
    """Bytes of a model that is in memory as a whole."""
    return 4.0 * facts.parameters


def teacher_of(
    technique: Training, source: ModelFacts, dense: ModelFacts, named: ModelFacts | None
) -> ModelFacts | None:
    """The model that is asked while the student trains; None where nobody is, as of layers by themselves."""
    if _is_layerwise(technique):
        return None
    if not isinstance(technique, Distilling) and not hasattr(technique, "teacher"):
        return None
    if isinstance(technique, Distilling) and (technique.teacher_top_k or not needs_teacher(technique.losses)):
        return None
    return named or (source if getattr(technique, "teacher", "") == "source" else dense)


def _step(trained: Trained, tokens: float, micro_tokens: float, moving: float) -> Work:
    """Forward, once more where activations are not kept, and twice as much back; the teacher's forward beside it."""
    technique, facts = trained.technique, trained.student.facts
    batch = min(tokens, micro_tokens)
    again = 1.0 if technique.gradient_checkpointing else 0.0
    own = forward(facts, tokens, trained.length, batch=batch).times(3 + again)
    own = own.plus(head(facts, tokens).times(3))
    if trained.teacher:
        own = own.plus(forward(trained.teacher, tokens, trained.length, batch=batch)).plus(
            head(trained.teacher, tokens)
        )
    if isinstance(technique, QuantizationAware):
        passes = max(1.0, tokens / batch) * (1 + again)
        weights = sum(one.elements for one in facts.linears)
        own = own.plus(Work((), values=ROUNDED_values * weights * passes, calls=passes * len(facts.linears) / 2))
    return own._replace(starts=(), values=own.values + OPTIMIZER_values * moving, calls=own.calls + facts.layers)


def _forward_of_all(trained: Trained, tokens: float, batch: float) -> Work:
    facts = trained.student.facts
    work = forward(facts, tokens, trained.length, batch=batch).plus(head(facts, tokens))
    if trained.teacher:
        work = work.plus(forward(trained.teacher, tokens, trained.length, batch=batch)).plus(
            head(trained.teacher, tokens)
        )
    return work._replace(starts=())


def training_memory(trained: Trained) -> Memory:
    """What the engine counts as well, and what a micro-batch leaves."""
    technique, facts, length = trained.technique, trained.student.facts, trained.length
    micro = _micro(technique, length)
    if _is_layerwise(technique):
        return layerwise_memory(technique, facts, length, micro)
    tokens = min(micro, technique.batch) * length
    one_layer = tokens * (16.0 * facts.hidden + 6.0 * facts.intermediate * max(1, facts.experts_chosen))
    between = one_layer + _kept(technique, facts, tokens, one_layer)
    asked = trained.teacher.parameters if trained.teacher else 0.0
    held = footprint(technique, facts.tensors, asked, processes=trained.processes)
    device = 4.0 * between + layer_peak(facts, length, tokens)
    exact = 4.0 * min(_CHUNK_rows, tokens) * facts.vocabulary * (6 if trained.teacher else 4)
    if isinstance(technique, QuantizationAware):  # rounded weights, of one layer or of all
        exact += 8.0 * (facts.largest_layer if technique.gradient_checkpointing else held.moving)
    return Memory(exact=exact, device=device, trained=held, processes=trained.processes)


def _is_layerwise(technique: Training) -> TypeGuard[QuantizationAware]:
    return isinstance(technique, QuantizationAware) and technique.scope == "block"


def _micro(technique: Training, length: int) -> int:
    """Windows in memory at once."""
    return technique.micro_batch or max(1, _MICRO_tokens // length)


def _kept(technique: Training, facts: ModelFacts, tokens: float, one_layer: float) -> float:
    """Values that all layers keep for the backward pass."""
    return facts.layers * (tokens * facts.hidden if technique.gradient_checkpointing else one_layer)
