"""A model that decodes several sequences at once, and takes back what it was asked about in vain.

    session = Session(target, rows)
    session.read(prompts_BT, valid_BT)
    logits_BTV, features = session.extend(chosen_and_drafted_BT)
    session.keep(chosen_and_accepted_BT)

Shapes: B rows, T new tokens, S tokens before them, V vocabulary.
"""

from collections.abc import Sequence
from weakref import WeakSet

import torch

from optcore.attention import attention_of
from optcore.errors import RecipeError
from optcore.out_of_memory import is_out_of_memory
from optcore.speculative.key_values import cut, empty_cache, settle
from optcore.speculative.masks import additive_masks, kinds_of
from optcore.speculative.target import Features, Target
from optcore.speculative.tree import ancestors, chain, depths

_checked: WeakSet[Target] = WeakSet()
_CLOSE = 0.05
"""Relative difference that roundings of bfloat16 do not reach, and a wrong mask passes by far."""


class Session:
    """The target's KV cache of `rows` sequences, whose lengths may differ.

    Raises `RecipeError` for a model whose past cannot be rolled back: one that keeps a recurrent state, an encoder, or
    one that does not compute the same when it is given masks and positions.
    """

    def __init__(self, target: Target, rows: int) -> None:
        self.target = target
        self.lengths_B = torch.zeros(rows, dtype=torch.long, device=target.device)
        """Tokens that are in each row, without those of the last block that are not settled yet."""
        self._cache = empty_cache(target)
        self._block_BT: torch.Tensor | None = None
        if target not in _checked:
            _refuse(target)
            _checked.add(target)
            _check(target)

    def read(
        self, tokens_BT: torch.Tensor, valid_BT: torch.Tensor | None = None, parents_T: Sequence[int] | None = None
    ) -> Features:
        """One pass over a block of tokens behind what is settled.

        `parents_T` makes it a tree of tokens (-1: the settled text); rows have tokens where `valid_BT` holds, and in a
        chain these come first. Of the block before it all stays, unless `keep` said otherwise.
        """
        self._settle()
        valid_BT = torch.ones_like(tokens_BT, dtype=torch.bool) if valid_BT is None else valid_BT
        parents = chain(tokens_BT.shape[1]) if parents_T is None else parents_T
        depth_T = torch.tensor(depths(parents), device=tokens_BT.device)
        positions_BT = (self.lengths_B[:, None] + depth_T).masked_fill(~valid_BT, 0)  # filler may lie beyond the last
        inputs = {"input_ids": tokens_BT, "position_ids": positions_BT}
        if parents_T is not None or self.lengths_B.any():  # else the model's own mask will do, and takes no memory
            inputs["attention_mask"] = self._masks(positions_BT, valid_BT, ancestors(parents))
        self._block_BT = valid_BT
        return self.target.look(inputs, self._cache)

    def extend(
        self, tokens_BT: torch.Tensor, valid_BT: torch.Tensor | None = None, parents_T: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, Features]:
        """`read`, and logits [B, T, V] of all tokens."""
        features = self.read(tokens_BT, valid_BT, parents_T)
        return self.target.logits(features.hidden_BTH), features

    def keep(self, kept_BT: torch.Tensor) -> None:
        """Which tokens of the last block stay, bool: of a tree those of one path."""
        assert self._block_BT is not None, "nothing was read"
        self._block_BT = self._block_BT & kept_BT
        self._settle()

    def crop(self, lengths_B: torch.Tensor) -> None:
        """Go back to where rows had so many tokens, at most as many as they have."""
        self._settle()
        self.lengths_B = torch.minimum(self.lengths_B, lengths_B)
        cut(self._cache, int(self.lengths_B.max()))

    def _settle(self) -> None:
        if self._block_BT is not None:
            self.lengths_B = settle(self._cache, self.lengths_B, self._block_BT)
            self._block_BT = None

    def _masks(self, positions_BT: torch.Tensor, valid_BT: torch.Tensor, seen_TT: torch.Tensor) -> object:
        device, (rows, asked) = positions_BT.device, positions_BT.shape
        slots_S = torch.arange(int(self.lengths_B.max()), device=device)
        before_BTS = (slots_S < self.lengths_B[:, None])[:, None].expand(-1, asked, -1)
        itself_TT = torch.eye(asked, dtype=torch.bool, device=device)  # filler sees itself: a softmax needs something
        block_BTT = (seen_TT.to(device) & valid_BT[:, None]) | itself_TT
        keys_BS = torch.cat((slots_S.expand(rows, -1), positions_BT), 1)
        visible_BTS = torch.cat((before_BTS, block_BTT), 2)
        config, dtype = self.target.model.config, self.target.decoder.dtype
        return additive_masks(config, positions_BT, keys_BS, visible_BTS, dtype)


def _refuse(target: Target) -> None:
    config = target.model.config
    if not target.decoder.is_causal:
        why = "an encoder does not decode"
    elif attention_of(config.to_dict()).recurrent:
        why = "a recurrent state cannot be rolled back"
    elif target.head is None:
        why = "its logits are not made by one linear layer"
    else:
        kinds_of(config)
        return
    raise _unfit(target, why)


def _check(target: Target) -> None:
    """Whether a rejected branch leaves no trace, tried on a few tokens."""
    tokens_1T = torch.arange(1, 7, device=target.device)[None] % target.vocabulary
    tokens = tokens_1T[0].tolist()
    try:
        wanted = target.look({"input_ids": tokens_1T}, empty_cache(target)).hidden_BTH[:, 3:]
        session = Session(target, 1)
        session.read(tokens_1T[:, :3])
        branches = torch.tensor([[tokens[0], tokens[3], tokens[1], tokens[4]]], device=target.device)
        forked = session.read(branches, parents_T=(-1, -1, 0, 1)).hidden_BTH[:, 1::2]
        session.keep(torch.tensor([[False, True, False, True]], device=target.device))
        found = torch.cat((forked, session.read(tokens_1T[:, 5:]).hidden_BTH), 1)
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        _checked.discard(target)
        if is_out_of_memory(error):
            raise
        raise _unfit(target, f"it refuses masks or positions ({error})") from error
    if not (found - wanted).norm() <= _CLOSE * wanted.norm():
        _checked.discard(target)
        raise _unfit(target, "it computes something else when it is given masks and positions")


def _unfit(target: Target, why: str) -> RecipeError:
    return RecipeError(
        f"{type(target.model).__name__} cannot verify drafts here: {why}",
        remedy="use a model whose layers keep keys and values only, or leave `draft` out",
        field="/chain",
    )
