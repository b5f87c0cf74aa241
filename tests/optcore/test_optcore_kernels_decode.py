"""The product with stored 4-bit weights: what memory its kernels read and write, and which products have none."""

import pytest
import torch
from fixtures.kernels.weight_only import arguments

from optcore.kernels.counting import counting
from optcore.kernels.weight_only import MOST_ROWS, weight_only_matmul


@pytest.mark.parametrize(("scheme", "tokens"), [("int4_asym", 1), ("nvfp4", 4)])
def test_memory_that_held_something_else_does_not_reach_the_result(scheme: str, tokens: int) -> None:
    x_MK, stored, args = arguments(scheme, tokens, 40, 512, torch.float16)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        assert x_MK.new_empty(1).isnan()
        made = weight_only_matmul.launch(x_MK, stored, args)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(made, weight_only_matmul.definition(x_MK, stored, args), rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("tokens", [1, 16])
def test_every_byte_of_the_weight_is_given_to_one_launch(tokens: int) -> None:
    x_MK, stored, args = arguments("int4", tokens, 40, 512, torch.float16)
    with counting() as counts:
        weight_only_matmul.launch(x_MK, stored, args)
    name = "multiply_row" if tokens == 1 else "multiply_rows"
    assert counts.launches == {name: 1, "add_parts": 1}
    weights = stored["weight_packed"].nbytes + stored["weight_scale"].nbytes
    partial_sums = counts.bytes["add_parts"] - tokens * 40 * 2
    assert counts.bytes[name] == weights + x_MK.nbytes + partial_sums


def test_products_that_no_kernel_was_written_for_are_left_to_the_definition() -> None:
    x_MK, stored, args = arguments("int4", 1, 8, 256, torch.float16)
    for other in (x_MK.double(), x_MK.expand(MOST_ROWS + 1, -1), x_MK.float().expand(2, -1)):
        assert weight_only_matmul.launch(other, stored, args) is NotImplemented
    for scheme in ("int3", "mxfp4", "nf4", "int8"):
        x_MK, stored, args = arguments(scheme, 1, 8, 256, torch.float16)
        assert weight_only_matmul.launch(x_MK, stored, args) is NotImplemented
        assert weight_only_matmul.definition(x_MK, stored, args).shape == (1, 8)
