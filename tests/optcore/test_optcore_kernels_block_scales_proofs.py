"""How often the kernel that searches block scales stores what its definition stores, and what it loses or gains."""

import numpy as np
import pytest
import torch
from fixtures.kernels import tensors_of
from fixtures.kernels.block_scales import arguments_of, error_of

from optcore.kernels import block_scales as module
from optcore.kernels.block_scales import block_scales
from optcore.schemes import GGML_FORMATS, PRESETS


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", sorted(GGML_FORMATS))
def test_a_large_weight_loses_no_more_than_by_the_definition(
    name: str, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_INTERPRETED_values", 2**16)
    arguments = arguments_of(512, PRESETS[name].weights, weighted=weighted, searched=True)
    with np.errstate(all="ignore"):
        both = [run(*arguments) for run in (block_scales.launch, block_scales.definition)]
    ours, theirs = (float(error_of(arguments[1], tensors_of([made, arguments]))[0]) for made in both)
    same = [float((a == b).float().mean()) for a, b in zip(*map(tensors_of, both), strict=True)]
    print(f"{name}: error {ours / theirs - 1:+.1e}; stored alike: {', '.join(f'{share:.4f}' for share in same)}")
    assert ours / theirs - 1 < 3e-4
    assert min(same) > 0.95
    assert all(torch.isfinite(tensor.float()).all() for tensor in tensors_of(both[0]))
