"""Errors of ggml's block formats on the data of the reference, beside the C encoder, and its throughput."""

import pytest

from benchmarks.kquants import compare_kquants
from optcore.schemes import GGML_FORMATS

# Relative errors on a Gaussian 256 x 4096, without importance and weighted by it, of ggml's encoder.
TARGETS = {
    "q8_0": (0.00535, None),
    "q6_k": (0.01781, 0.01625),
    "q5_k": (0.03847, 0.03419),
    "q4_k": (0.07210, 0.06523),
    "q4_0": (0.08596, 0.07758),
    "iq4_xs": (0.07669, 0.07126),
    "q3_k": (0.15172, 0.13477),
    "q2_k": (0.30466, 0.23876),
}
# The same without importance of AutoRound's encoder, which searches on a GPU.
AUTOROUND = {"q6_k": 0.01776, "q5_k": 0.03614, "q4_k": 0.07140, "q3_k": 0.15092, "q2_k": 0.29580}


@pytest.mark.proof
@pytest.mark.slow
def test_every_format_loses_less_than_the_c_encoder() -> None:
    compared = compare_kquants(rounds=3)
    assert len(compared) == 2 * len(GGML_FORMATS)
    assert all(one.ours_error < one.theirs_error for one in compared)
    for one in compared:
        target = TARGETS.get(one.name, (None, None))[one.is_weighted]
        assert target is None or one.ours_error <= target, one
        assert one.is_weighted or one.ours_error <= AUTOROUND.get(one.name, 1.0), one
