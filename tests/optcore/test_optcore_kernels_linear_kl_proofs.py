"""What the fused divergence costs that shows without a GPU: registers, width of loads, and its dispatch on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import pytest
import torch

from optcore.kernels.linear_kl import linear_kl

ROOT = Path(__file__).parents[2]
_CALLS = 300

pytestmark = [pytest.mark.proof, pytest.mark.slow]


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_two_rows_share_a_multiprocessor_and_no_load_is_of_single_elements(capability: int) -> None:
    """Of any vocabulary: among the calls are odd ones."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "fixtures.kernels_compiled", str(capability), "linear KL"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["kernel"] for one in compiled} == {"_kl_rows"}
    for one in compiled:
        said = f"{one['reg']} registers, {one['stack']} bytes of stack, {one['shared']} of shared memory"
        print(f"sm_{capability} gradient {one['constants']['GRADIENT']}: {said}, loads of {one['loads']} bytes")
        threads = 32 * one["num_warps"]
        assert one["stack"] == 0
        assert 2 * threads * one["reg"] <= 65_536
        assert 2 * one["shared"] <= 166_912
        # A row's first logits are loaded alone; all others by fours.
        assert one["loads"] in ([2, 8], [4, 16], [2, 4, 8, 16])


def test_on_a_cpu_the_operator_takes_what_its_definition_takes() -> None:
    """Paired calls in turn, of so few logits that the dispatch would show."""
    given = torch.randn(4, 8), torch.randn(64, 8), torch.randn(4, 8), torch.randn(64, 8), 1.0, True
    more = []
    for _ in range(_CALLS):
        started = perf_counter()
        linear_kl.definition(*given)
        between = perf_counter()
        linear_kl(*given)
        more.append(perf_counter() - between - (between - started))
    print(f"dispatch: {median(more) * 1e6:.1f} us a call")
    assert median(more) < 5e-6
