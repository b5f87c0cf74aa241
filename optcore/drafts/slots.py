"""What drafters remember of the text, for rows that grow at their own pace.

Shapes: B rows, T tokens read at once, S slots, G key-value heads, h head size, H hidden size.
"""

import torch

from optcore.drafts.layers import KeysValues


class Slots:
    """Keys and values of B texts by place: what is written behind a row's end is written over once the row gets there,
    so nobody has to know which of it was padding."""

    def __init__(self) -> None:
        self._held: KeysValues | None = None

    def write(self, places_BT: torch.Tensor, new: KeysValues) -> None:
        """Put what was computed of tokens at their places; no place twice in a row."""
        if self._held is None:
            self._held = KeysValues(*(part.new_zeros(part.shape[0], 0, *part.shape[2:]) for part in new))
        needed = int(places_BT.max()) + 1 if places_BT.numel() else 0
        if needed > self._held.keys.shape[1]:
            room = max(needed, 2 * self._held.keys.shape[1])  # doubled: long texts are not copied at every token
            self._held = KeysValues(*(_grown(part, room) for part in self._held))
        rows_B1 = torch.arange(len(places_BT), device=places_BT.device)[:, None]
        for held, part in zip(self._held, new, strict=True):
            held[rows_B1, places_BT] = part

    @property
    def held(self) -> KeysValues:
        """[B, S, G, h]; zeros, or leftovers, in places that no text has reached."""
        assert self._held is not None, "a drafter reads before it proposes"
        return self._held


def _grown(part_BSGh: torch.Tensor, room: int) -> torch.Tensor:
    """Zeros and not whatever was in memory: a share of 0 times NaN is NaN."""
    grown = part_BSGh.new_zeros(part_BSGh.shape[0], room, *part_BSGh.shape[2:])
    grown[:, : part_BSGh.shape[1]] = part_BSGh
    return grown


def left_aligned(valid_BT: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """How many of a row are valid, int64 [B], and each of the values [B, T, ...] with the valid ones first, in order;
    what follows them in a row is padding."""
    order_BT = torch.argsort(~valid_BT, dim=1, stable=True)
    rows_B1 = torch.arange(len(valid_BT), device=valid_BT.device)[:, None]
    return (valid_BT.sum(1), *(value[rows_B1, order_BT] for value in values))


def last_of(values_BTH: torch.Tensor, counts_B: torch.Tensor) -> torch.Tensor:
    """Of each row the last of its first so many, [B, H]; of a row that has none, whatever stands first."""
    rows_B = torch.arange(len(counts_B), device=counts_B.device)
    return values_BTH[rows_B, (counts_B - 1).clamp(min=0)]
