"""Every Triton kernel beside its definition on a GPU, both compiled by the libraries that are there."""

import pytest
import torch
from fixtures.kernels import Call, calls, compare

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("call", list(calls()), ids=lambda call: call.name)
def test_a_kernel_gives_what_its_definition_gives_on_a_gpu(call: Call) -> None:
    assert compare(call, "cuda", (call.on_gpu or call.arguments)()) == []
