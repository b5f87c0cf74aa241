"""Tied layers: which go together, what they compute with, what is saved, and what cannot be tied."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from optcore.compact import load_compact
from optcore.errors import RecipeError
from optcore.export import Compact
from optcore.restructure import tie_layers
from optcore.restructure.tie_layers import joined
from optcore.run import Run
from optcore.techniques import TieLayers
from optcore.tied import load_tied


def made(source: Path, out: Path, seed: int = 0, **settings: Any) -> tuple[Run, dict[str, torch.Tensor]]:
    run = run_of(source, source, out)
    run.seed = seed
    TieLayers.model_validate(settings).apply(run)
    return run, load_file(out / "model.safetensors")


@pytest.mark.parametrize("value", ["mean", "first"])
def test_a_run_has_one_value_for_each_matrix(value: str, stdlib_model: Path, tmp_path: Path) -> None:
    run, tensors = made(stdlib_model, tmp_path / "out", runs=[(1, 3)], value=value)
    before = load_file(stdlib_model / "model.safetensors")
    assert tensors.keys() == before.keys()
    tied = 0
    for name, tensor in tensors.items():
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        if name.startswith("model.layers.") and layer in "123" and tensor.ndim > 1:
            three = [before[f"model.layers.{one}.{rest}"] for one in (1, 2, 3)]
            mean = (sum(one.double() for one in three) / 3).bfloat16()  # type: ignore[union-attr]
            assert torch.equal(tensor, mean if value == "mean" else three[0])
            tied += 1
        else:
            assert torch.equal(tensor, before[name])
    assert tied == 3 * 7
    document = load_tied(run.out)
    assert document is not None
    assert (document.runs, len(document.tensors)) == (((1, 2, 3),), 7)
    AutoModelForCausalLM.from_pretrained(run.out)
    Compact().write(run_of(stdlib_model, run.out, tmp_path / "compact"))
    saved = sum(before[name].nbytes for names in document.tensors for name in names[1:])
    assert load_compact(tmp_path / "compact").data_bytes == sum(one.nbytes for one in before.values()) - saved


def test_layers_go_together_over_which_states_turn_least(
    stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = made(stdlib_model, tmp_path / "out", ties=1)
    said: Any = run.results["tied"]
    assert len(said["influence"]) == 5
    tie = said["runs"][0][0]
    assert said["influence"][tie] == min(said["influence"][1:4])  # neither the first layer nor the last
    monkeypatch.setattr(tie_layers, "influences", lambda *_: [0.0, 3.0, 1.0, 2.0, 0.5])
    assert made(stdlib_model, tmp_path / "two", ties=2)[0].results["tied"]["runs"] == ((2, 3, 4),)  # type: ignore[index,call-overload]
    assert made(stdlib_model, tmp_path / "all", ties=3, ends=True)[0].results["tied"]["runs"] == (
        (0, 1),
        (2, 3),
        (4, 5),
    )  # type: ignore[index,call-overload]


def test_ties_that_touch_are_one_run() -> None:
    assert joined([4, 0, 1, 6]) == ((0, 1, 2), (4, 5), (6, 7))
    assert joined([]) == ()


def test_as_many_are_drawn_at_random(stdlib_model: Path, tmp_path: Path) -> None:
    drawn = set()
    for seed in range(6):
        run, _ = made(stdlib_model, tmp_path / str(seed), seed, runs=[(1, 3)], order="random")
        said: Any = run.results["tied"]
        assert sum(len(layers) - 1 for layers in said["runs"]) == 2
        drawn.add(said["runs"])
    assert len(drawn) > 1


def test_no_ties_leave_the_model_as_it_is(stdlib_model: Path, tmp_path: Path) -> None:
    _, tensors = made(stdlib_model, tmp_path / "out", ties=0)
    before = load_file(stdlib_model / "model.safetensors")
    assert tensors.keys() == before.keys()
    assert all(torch.equal(one, before[name]) for name, one in tensors.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ties": 4}, "cannot tie 4 layers to those before them: 3 pairs are alike"),
        ({"ties": 6, "ends": True}, "5 pairs are alike"),
        ({"runs": [(4, 6)]}, "layers 5 and 6 are not there"),
    ],
)
def test_too_many_are_refused(settings: dict[str, Any], message: str, stdlib_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        made(stdlib_model, tmp_path / "out", **settings)
    assert caught.value.field == "/chain"


def test_layers_of_other_shapes_stay_alone(tiny_model: MakeModel, tmp_path: Path) -> None:
    """A convolution before attention."""
    with pytest.raises(RecipeError, match="0 pairs are alike"):
        made(tiny_model("Lfm2"), tmp_path / "a", ties=1, ends=True)
    with pytest.raises(RecipeError, match="matrices of other shapes"):
        made(tiny_model("Lfm2"), tmp_path / "b", runs=[(0, 1)])


@pytest.mark.parametrize(
    "settings", [{}, {"ties": 1, "runs": [(0, 1)]}, {"runs": [(2, 2)]}, {"runs": [(0, 2), (2, 3)]}]
)
def test_settings_that_say_nothing_or_two_things_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TieLayers.model_validate(settings)
