"""Gradients cut to a largest norm together."""

import math
from collections.abc import Collection, Sequence

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from optcore.training.constraints import Constraint, Shared
from optcore.training.ranks import full, own_part

_TINY = 1e-6  # PyTorch's own, so that a norm of zero divides nothing


def clip_gradients(parameters: Collection[nn.Parameter], largest: float, constraints: Sequence[Constraint]) -> float:
    """Cut, in place, the gradients that constraints have projected; their norm before that.

    It is the norm over what is free to move: a number that many places share counts once, as it would if it were the
    parameter, not once for each place. Parameters may be spread over processes: all of these call it in step.
    """
    shared = [one for one in constraints if isinstance(one, Shared)]
    if not shared:
        return float(full(clip_grad_norm_(parameters, largest)))
    members = {id(member) for one in shared for member in one.parameters}
    rest = [one.grad for one in parameters if one.grad is not None and id(one) not in members]
    norm = math.hypot(float(full(get_total_norm(rest))), *(one.gradient_norm for one in shared))
    scale = min(1.0, largest / (norm + _TINY))
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                own_part(parameter.grad).mul_(scale)
    return norm
