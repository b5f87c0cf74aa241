"""Rounding of activations as an engine does it at run time, for simulation in plain torch."""

import torch
from torch.nn.functional import pad

from optcore.algorithms.rounding import E2M1_MAX, E4M3_MAX, grid_of, scale_reach
from optcore.algorithms.scale_search import Choice, Objective, asymmetric, search
from optcore.algorithms.storage import Storage, e4m3, e8m0, own_type
from optcore.schemes import QuantArgs

# E4M3 codes beside the plain one that the search tries: with it the 8 candidates that a kernel can afford. Downwards
# they clip the largest value of a block; +4 to +5 map it to 4 instead of 6 (arXiv:2512.02010).
_SEARCHED = (-3, -2, -1, 1, 2, 4, 5)
_LARGEST = torch.finfo(torch.float32).max


def static_scale(amax: float, args: QuantArgs, dtype: torch.dtype) -> torch.Tensor:
    """The stored activation scale [1] for a measured largest magnitude.

    For NVFP4 it is the float32 divisor of the block scales, 448 * 6 / amax; otherwise amax / reach in `dtype`.
    An input that was always zero (an expert that no token reached) gets 1.
    """
    if args.strategy == "tensor_group":
        return torch.tensor([min(E4M3_MAX * E2M1_MAX / amax, _LARGEST) if amax else 1.0])
    scale = torch.tensor([amax / grid_of(args).reach if amax else 1.0]).to(dtype)
    return torch.where(scale == 0, torch.finfo(dtype).tiny, scale)


def outlier_columns(x: torch.Tensor, args: QuantArgs) -> torch.Tensor:
    """Inputs [K] of [..., K] that hold a magnitude above the format's threshold, bool."""
    assert args.outliers is not None
    return (x.abs() > args.outliers).flatten(0, -2).any(0)


def fake_quantize_activation(
    x: torch.Tensor, args: QuantArgs, scale: torch.Tensor | None, search: bool = False
) -> torch.Tensor:
    """Round activations [..., K] to the values that an engine would compute with. Same shape and type.

    `scale` is what `static_scale` gave, where the format has one. `search` chooses NVFP4 and MX block scales by the
    least squared error among at most 8 instead of by the maximum. LLM.int8's outlier columns come back as they are:
    they are multiplied by the unrounded weight, which is the caller's to do.
    """
    if args.outliers is not None:
        outliers_K = outlier_columns(x, args)
        regular = args.model_copy(update={"outliers": None})
        return torch.where(outliers_K, x, fake_quantize_activation(x.masked_fill(outliers_K, 0), regular, scale))
    values, grid = _grouped(x.float(), args), grid_of(args)
    step, zero = _steps(values, args, scale, search=search)
    shift = 0.0 if zero is None else zero
    return ((grid.round(values / step + shift) - shift) * step).flatten(-2)[..., : x.shape[-1]].to(x.dtype)


def _grouped(values: torch.Tensor, args: QuantArgs) -> torch.Tensor:
    """[..., K] as [..., groups, values that share a scale]; the last group may be short."""
    size = args.group_size or values.shape[-1]
    return pad(values, (0, -values.shape[-1] % size)).unflatten(-1, (-1, size))


def _steps(
    values: torch.Tensor, args: QuantArgs, scale: torch.Tensor | None, *, search: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Steps and zero points that broadcast over the groups."""
    if args.strategy == "tensor":
        assert scale is not None
        return scale.float().to(values.device), None
    storage = _storage(args, scale, values.device)
    choice = _chosen(values, args, storage, search=search)
    zero = None if choice.zero is None else choice.zero.float().unsqueeze(-1)
    return storage.step(choice.stored).unsqueeze(-1), zero


def _storage(args: QuantArgs, scale: torch.Tensor | None, device: torch.device) -> Storage:
    if args.strategy == "tensor_group":
        assert scale is not None
        return e4m3(scale.float().to(device))._replace(neighbours=_SEARCHED)
    return e8m0(scale_reach(args)) if args.scale_type == "e8m0" else own_type(torch.float32)


def _chosen(values: torch.Tensor, args: QuantArgs, storage: Storage, *, search: bool) -> Choice:
    if not args.symmetric:
        return asymmetric(storage, args.bits, values.amin(-1).clamp(max=0), values.amax(-1).clamp(min=0))
    amax = values.abs().amax(-1)
    plain = Choice(storage.store(amax / scale_reach(args)))
    return _searched(values, args, storage, plain, amax) if search and storage.neighbours else plain


def _searched(values: torch.Tensor, args: QuantArgs, storage: Storage, plain: Choice, amax: torch.Tensor) -> Choice:
    rows = Choice(plain.stored.flatten(0, -2))
    objective = Objective(values.flatten(0, -3), None, storage, args)
    return Choice(search(objective, rows, -amax, amax).stored.view(plain.stored.shape))
