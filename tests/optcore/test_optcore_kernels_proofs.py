"""What needs no GPU: every kernel goes through triton's compiler and the assembler of the cards that we name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_every_kernel_compiles_for_a_card(capability: int) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "fixtures.kernels_compiled", str(capability)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    print(f"sm_{capability}: {len(compiled)} kernels; shared memory up to {max(c['shared'] for c in compiled)} bytes")
    print(*(f"  {c['kernel']}: {c['reg']} registers, {c['stack']} bytes of stack" for c in compiled), sep="\n")
    assert {c["kernel"] for c in compiled}
    assert max(c["shared"] for c in compiled) <= {80: 166_912, 90: 232_448, 100: 232_448}[capability]
