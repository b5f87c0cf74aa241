"""Parts of formulas that several kinds of stages are made of: forward passes, states between layers, a layer's peak.

Legend: T tokens, H hidden size, V vocabulary.
"""

from optcore.estimate.constants import WORKING_bytes
from optcore.estimate.facts import ModelFacts
from optcore.estimate.work import Work

BATCH_tokens = 4096
"""That go through a layer at once (`streaming.hidden`)."""
STATES_bytes = 2 * 2**30
"""Of states that stay in memory; more go to a file (`streaming.hidden`)."""
_STEP_calls = 6.5
"""What a token's step through a layer of a whole model with a cache takes, as calls of a layer by itself."""
OPTIMIZER_values = 14
"""Values that a step of AdamW reads and writes for each parameter, with clipping."""
ROUNDED_values = 24
"""The same for each weight that is rounded with a gradient, forward and back."""
LOGITS_tokens = 512
"""Whose logits are in memory at once (`evaluate.positions`)."""


def forward(facts: ModelFacts, tokens: float, length: int, *, batch: float = BATCH_tokens) -> Work:
    """All layers over so many tokens in windows of a length."""
    attention = 4 * length * facts.heads * facts.head_dim * facts.layers
    values = facts.layers * (12 * facts.hidden + 4 * facts.intermediate + 2 * length * facts.heads)
    calls = facts.layers * max(1.0, tokens / batch)
    return Work((), flops=(2 * facts.active + attention) * tokens, values=values * tokens, calls=calls)


def head(facts: ModelFacts, tokens: float) -> Work:
    """Logits of so many tokens, and what compares two of them."""
    amount = facts.vocabulary * tokens
    return Work((), flops=2 * facts.hidden * amount, values=8 * amount)


def decoding(facts: ModelFacts, tokens: float, sequences: float, length: int) -> Work:
    """So many tokens written one after the other, several sequences at once: every step reads all weights."""
    work = forward(facts, tokens * sequences, length // 2, batch=sequences).plus(head(facts, tokens * sequences))
    work = work._replace(calls=_STEP_calls * work.calls)
    return work._replace(values=work.values + tokens * (facts.active + facts.vocabulary * facts.hidden) / 4)


def states(facts: ModelFacts, tokens: float, copies: int) -> float:
    """Bytes of the memory that hidden states between two layers take; those in a file count once, by its cache."""
    return copies * min(4.0 * facts.hidden * tokens, STATES_bytes)


def spilled(facts: ModelFacts, tokens: float, copies: int) -> float:
    """Bytes of hidden states that go to a file."""
    size = 4.0 * facts.hidden * tokens
    return copies * size if size > STATES_bytes else 0.0


def layer_peak(facts: ModelFacts, length: int, tokens: float = BATCH_tokens) -> float:
    """Bytes of what is outside of layers, the largest layer, and a batch that goes through it."""
    windows = max(1.0, tokens / length)
    attention = windows * length * (3 * facts.heads * facts.head_dim + 2 * facts.kv_heads * facts.head_dim)
    between = windows * length * (6 * facts.hidden + 3 * _widest(facts)) + attention
    stored = facts.bytes_a_value * facts.largest_layer
    return WORKING_bytes + 4.0 * (facts.outside + facts.largest_layer + between) + stored


def logits_peak(facts: ModelFacts, models: int) -> float:
    """Bytes of the logits of a few tokens, and of their logarithms."""
    return 4.0 * LOGITS_tokens * facts.vocabulary * (models + 4)


def _widest(facts: ModelFacts) -> float:
    """Values of a token inside a feed-forward network, of all experts that it is given to."""
    return facts.intermediate * max(1, facts.experts_chosen)
