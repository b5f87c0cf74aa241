"""torchao: weight-only and dynamic configurations; it has no calibrated ones for a CPU."""

from typing import Any

import torch

from benchmarks.peers.job import Job


def quantize(job: Job) -> Any:
    """The model with its decoder's linears replaced by torchao's tensors."""
    from torchao.quantization import quantize_

    model = job.load()
    config = _configurations()[job.recipe]()
    with job.timed():
        quantize_(model, config, filter_fn=lambda module, name: _is_wanted(module, name))
    return model


def _is_wanted(module: Any, name: str) -> bool:
    return isinstance(module, torch.nn.Linear) and "lm_head" not in name


def _configurations() -> dict[str, Any]:
    from torchao import quantization as ao
    from torchao.prototype.mx_formats import NVFP4DynamicActivationNVFP4WeightConfig, NVFP4WeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    def int4(group: int, mapping: Any) -> Any:
        return ao.IntxWeightOnlyConfig(torch.int4, granularity=PerGroup(group), mapping_type=mapping)

    symmetric, asymmetric = ao.MappingType.SYMMETRIC, ao.MappingType.ASYMMETRIC
    return {
        "int8-weight": ao.Int8WeightOnlyConfig,
        "int8-dynamic": ao.Int8DynamicActivationInt8WeightConfig,
        "fp8-dynamic": lambda: ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow()),
        "int4-g128": lambda: int4(128, symmetric),
        "int4-g128-asym": lambda: int4(128, asymmetric),
        "int4-g32": lambda: int4(32, symmetric),
        "int4-g32-asym": lambda: int4(32, asymmetric),
        "nvfp4-weight": NVFP4WeightOnlyConfig,
        "nvfp4-dynamic": NVFP4DynamicActivationNVFP4WeightConfig,
    }
