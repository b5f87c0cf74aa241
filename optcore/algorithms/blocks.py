"""Which values of a weight share a scale, as views. Legend: W is [N, K] (outputs, inputs); R x G scales."""

import torch
from torch.nn.functional import pad

from optcore.schemes import QuantArgs


def blocks(weight_NK: torch.Tensor, args: QuantArgs) -> torch.Tensor:
    """W as [R, G, values that share a scale]: a view, but for 2-D blocks, which are copied and padded with zeros.

    Where one scale serves the whole tensor, its rows are the blocks, and errors are added over them.
    """
    if args.strategy in ("tensor", "channel"):
        return weight_NK.unsqueeze(1)
    if args.strategy == "block":
        return _tiles(weight_NK, args)
    return weight_NK.unflatten(1, (-1, args.group_size or weight_NK.shape[1]))


def importance_blocks(importance_K: torch.Tensor, args: QuantArgs) -> torch.Tensor:
    """The importance of inputs [K] in the shape of `blocks`, [1, G, values that share a scale]."""
    if args.strategy == "block":
        assert args.block is not None
        importance_K = importance_K.expand(args.block[0], -1)
        return _tiles(importance_K, args)
    return blocks(importance_K.unsqueeze(0), args)


def spread(per_block: torch.Tensor, args: QuantArgs, shape_NK: tuple[int, int]) -> torch.Tensor:
    """One number per scale, as stored, to one per value [N, K]; a broadcast view per tensor and per channel."""
    if args.strategy in ("tensor", "channel"):
        return per_block.reshape(-1, 1).expand(shape_NK)
    if args.strategy == "block":
        assert args.block is not None
        height, width = args.block
        return per_block.repeat_interleave(height, 0)[: shape_NK[0]].repeat_interleave(width, 1)[:, : shape_NK[1]]
    return per_block.repeat_interleave(shape_NK[1] // per_block.shape[1], 1)


def _tiles(weight_NK: torch.Tensor, args: QuantArgs) -> torch.Tensor:
    assert args.block is not None
    height, width = args.block
    padded = pad(weight_NK, (0, -weight_NK.shape[1] % width, 0, -weight_NK.shape[0] % height))
    return padded.unflatten(1, (-1, width)).unflatten(0, (-1, height)).transpose(1, 2).flatten(2)
