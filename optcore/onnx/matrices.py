"""Which matrices of a checkpoint a node of the builder's graph multiplies by."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

_TRIPLET = ("q_proj", "k_proj", "v_proj")
_OWN_NAMES = {
    "self_attn.o_proj": ("self_attn.dense", "self_attn.out_proj"),  # Phi, LFM2
    **{f"mlp.{ours}": (f"feed_forward.{theirs}",) for ours, theirs in (("gate_proj", "w1"), ("up_proj", "w3"))},
    "mlp.down_proj": ("feed_forward.w2",),
}
"""What checkpoints of some families call the modules that the builder gives one name."""


class Rows(NamedTuple):
    """Rows of a linear layer's weight [N, K], or all of them."""

    module: str
    part: int = 0
    parts: int = 1
    """The rows are one of so many equal parts."""

    def of(self, count: int) -> slice:
        """Which rows these are of a matrix that has so many."""
        height = count // self.parts
        return slice(self.part * height, (self.part + 1) * height)


def rows_of(node: str, known: Collection[str]) -> tuple[Rows, ...]:
    """The matrices that lie below each other in a node's weight; none where it is none of the known modules.

    The builder writes `/model/layers.0/attn/q_proj/MatMul` for `model.layers.0.self_attn.q_proj`. It puts q, k and v
    together, and takes a stored `gate_up_proj` apart.
    """
    module = node.strip("/").removesuffix("/MatMul").replace("/", ".").replace(".attn.", ".self_attn.")
    if found := next((name for name in _names(module) if name in known), None):
        return (Rows(found),)
    parent, _, own = module.rpartition(".")
    triplet = [f"{parent}.{name}" for name in _TRIPLET]
    if own == "qkv_proj" and all(name in known for name in triplet):
        return tuple(Rows(name) for name in triplet)
    if own in ("gate_proj", "up_proj") and f"{parent}.gate_up_proj" in known:
        return (Rows(f"{parent}.gate_up_proj", int(own == "up_proj"), 2),)
    return ()


def _names(module: str) -> Iterator[str]:
    yield module
    for ours, theirs in _OWN_NAMES.items():
        yield from (module.removesuffix(ours) + name for name in theirs if module.endswith(ours))


def can_pack(formats: dict[str, str]) -> bool:
    """Whether q, k and v of every attention have one number format, by module; what has none is plain."""
    parents = {name.rpartition(".")[0] for name in formats if name.endswith(_TRIPLET)}
    return all(len({formats.get(f"{parent}.{name}") for name in _TRIPLET}) == 1 for parent in parents)
