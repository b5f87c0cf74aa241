"""Scales fitted to the codes that were chosen: each in turn, the others fixed.

The loss tr((T - Q) H (T - Q)^T) is a parabola in the scale s of one group of one output, q = s c: with its columns'
slice of H and gradient g = H (t - q), its minimum is at s + <c, g> / <c, H c>. The minimum is rounded to what can be
stored, and taken only if that is nearer to it than the scale is now: the loss never rises.
"""

import torch

from optcore.algorithms.scales import Scales
from optcore.schemes import QuantArgs


def can_refit(args: QuantArgs) -> bool:
    """Whether scales are free numbers that one output owns: not a grid of scales, not one shared by layers.

    Those of formats with a minimum would move it too, and IQ4 has scales of zero, that no codes can be divided by.
    """
    free = args.scale_type in ("stored", "f16") and args.type not in ("uint", "iq")
    return free and args.strategy in ("channel", "group")


def refit(
    target_KN: torch.Tensor,
    rounded_KN: torch.Tensor,
    gram_KK: torch.Tensor,
    order_K: torch.Tensor,
    scales: Scales,
) -> Scales:
    """New scales [N, G]. Columns are in `order_K`: place p holds column order_K[p] of the weight."""
    step_NG = scales.scale.float()
    # Sorted by group, in rounding order within: all groups are of one size, so that nothing has to be counted.
    members_GK = (order_K // (len(order_K) // step_NG.shape[1])).argsort(stable=True).view(step_NG.shape[1], -1)
    difference_KN, fitted_NG = target_KN - rounded_KN, scales.scale.clone()
    for group, members in enumerate(members_GK):
        old_N = step_NG[:, group]
        codes_KN = rounded_KN[members] / old_N
        curvature_N = (codes_KN * (gram_KK[members][:, members] @ codes_KN)).sum(0)
        slope_N = (codes_KN * (gram_KK[members] @ difference_KN)).sum(0)
        best_N = old_N + slope_N / curvature_N
        stored_N = best_N.to(scales.scale.dtype)
        nearer_N = (stored_N.float() - best_N).abs() < (old_N - best_N).abs()
        taken_N = nearer_N & (curvature_N > 0) & (stored_N != 0) & stored_N.isfinite()
        fitted_NG[:, group] = torch.where(taken_N, stored_N, scales.scale[:, group])
        difference_KN[members] = target_KN[members] - codes_KN * fitted_NG[:, group].float()
    return scales._replace(scale=fitted_NG)
