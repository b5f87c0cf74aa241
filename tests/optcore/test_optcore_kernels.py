"""Every Triton kernel beside its definition in torch, by triton's interpreter; and which of the two runs where."""

from ast import Import, ImportFrom, parse
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.kernels import Call, calls, compare

from optcore.errors import RecipeError
from optcore.kernels.dispatch import SWITCH, uses_triton

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("call", list(calls()), ids=lambda call: call.name)
def test_a_kernel_gives_what_its_definition_gives(call: Call) -> None:
    with np.errstate(all="ignore"):  # the interpreter divides with numpy, which warns of what torch does not
        assert compare(call, "cpu", call.arguments()) == []


def test_the_definition_runs_on_a_cpu_unless_the_switch_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1)
    assert not uses_triton(x)
    monkeypatch.setenv(SWITCH, "triton")
    assert uses_triton(x)
    monkeypatch.setenv(SWITCH, "torch")
    assert not uses_triton(x)


def test_a_switch_of_no_known_position_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "cuda")
    with pytest.raises(RecipeError, match="LATHE_KERNELS is 'cuda'"):
        uses_triton(torch.zeros(1))


def test_no_module_of_the_engine_imports_triton_when_it_is_imported() -> None:
    found = [path.name for path in sorted((ROOT / "optcore").rglob("*.py")) if _imports_triton(path)]
    assert found == []


def _imports_triton(path: Path) -> bool:
    """At its top; a function may, and a block for type checkers."""
    top = [node for node in parse(path.read_text()).body if isinstance(node, Import | ImportFrom)]
    names = [alias.name for node in top for alias in node.names] + [getattr(node, "module", None) or "" for node in top]
    return any(name.split(".")[0] == "triton" for name in names)
