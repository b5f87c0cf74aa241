"""Settings that more than one technique shares: how weights are rounded once their scales are known."""

from pydantic import Field

from optcore.frozen import Frozen


class Gptq(Frozen):
    """Rounding with error feedback through the Hessian of the layer's output (GPTQ, arXiv:2210.17323)."""

    damping: float = Field(default=0.01, gt=0, le=1)
    """Share of the mean diagonal that is added to the Hessian; raised step by step when it cannot be factored."""
    act_order: bool = True
    """Round the columns with the largest diagonal first. Scales stay where they are in the weight, so engines that
    know no permutation read the result."""
    sweeps: int = Field(default=2, ge=0, le=8)
    """Passes of coordinate descent over the codes afterwards."""
    refit: bool = True
    """Fit the scales to the chosen codes in closed form between sweeps, where the format's scales are free."""
    asymmetry: float | None = Field(default=None, ge=0, le=1)
    """How far the target moves from the layer's output on quantized inputs to that on the original ones (GPTAQ,
    arXiv:2504.02692); less where calibration tokens are few. Above 0 it needs both, so `propagate: quantized`, and the
    groups of a layer are quantized one after the other. None: 0.5 with `propagate: quantized`, 0 with `original`."""
