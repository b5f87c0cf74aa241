"""The switch for the same bits every time reaches a stage's process before torch computes, and TF32 never does."""

import json
import os
import subprocess
import sys

import pytest

from optcore.errors import RecipeError
from optcore.numerics import stage_environment

SAID = """
import json, os, sys
from optcore.numerics import is_deterministic, settle_numerics
settle_numerics(deterministic=is_deterministic(os.environ))
import torch
json.dump([torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark,
           torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32], sys.stdout)
"""


@pytest.mark.parametrize(("asked", "expected"), [({}, False), ({"LATHE_DETERMINISTIC": "1"}, True)])
def test_a_stage_computes_as_it_was_asked_to(asked: dict[str, str], expected: bool) -> None:
    environment = stage_environment({**os.environ, **asked, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"})
    assert ("CUBLAS_WORKSPACE_CONFIG" in environment) == expected
    said = subprocess.run([sys.executable, "-c", SAID], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(said.stdout) == [expected, False, False, False]


def test_a_switch_of_no_known_position_is_refused() -> None:
    with pytest.raises(RecipeError, match="LATHE_DETERMINISTIC is 'yes'"):
        stage_environment({"LATHE_DETERMINISTIC": "yes"})
