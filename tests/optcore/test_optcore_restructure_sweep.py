"""A sweep over weights: what it measures, what it keeps, and what it leaves on the disk."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from optcore.calibration.text import Texts
from optcore.errors import RecipeError
from optcore.evaluate import positions
from optcore.evaluate.likelihood import mean_cross_entropy
from optcore.references import Calibration
from optcore.report import Series
from optcore.run import Run
from optcore.streaming.decoder import Decoder
from optcore.techniques.merge import Merge

TEXT = Calibration(dataset="python-stdlib", samples=6, sequence_length=48)


def _noisy(source: Path, folder: Path, share: float) -> Path:
    """A copy with noise of that share of each tensor's deviation."""
    shutil.copytree(source, folder)
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(1)
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator) * share * tensor.float().std(correction=0)
        tensors[name] = (tensor.float() + noise).to(tensor.dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _run(source: Path, other: Path, out: Path, **settings: Any) -> Run:
    run = run_of(source, source, out, calibration=TEXT)
    run.stage, run.models = "1-merge", (other,)
    Merge.model_validate({"others": [{"model": {"path": "other"}}], **settings}).apply(run)
    return run


def _same(one: Path, other: Path) -> bool:
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _oracle(folder: Path) -> float:
    """Transformers' own mean loss over the same windows."""
    windows_ST = Texts(folder, TEXT, ()).calibration_windows(10**6)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return float(model(windows_ST, labels=windows_ST).loss)


def test_cross_entropy_is_transformers_loss_however_it_is_cut(
    stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows_ST = Texts(stdlib_model, TEXT, ()).calibration_windows(10**6)
    decoder = Decoder(stdlib_model)
    found = mean_cross_entropy(decoder, windows_ST, tmp_path)
    assert found == pytest.approx(_oracle(stdlib_model), rel=1e-5)
    monkeypatch.setattr(positions, "LOGITS_tokens", 40)
    assert mean_cross_entropy(decoder, windows_ST, tmp_path) == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("method", ["slerp", "linear", "task_arithmetic", "ties"])
def test_the_chains_model_stays_where_no_merge_is_better(method: str, stdlib_model: Path, tmp_path: Path) -> None:
    run = _run(stdlib_model, _noisy(stdlib_model, tmp_path / "other", 0.5), tmp_path / "out", method=method, sweep=[1])
    assert run.results["sweep"]["best"] == 0  # type: ignore[index]
    assert _same(run.out, stdlib_model)
    assert any("no merge was better" in said for said in run.results["notices"])  # type: ignore[attr-defined]


def test_the_best_is_kept_and_the_curve_is_what_the_models_are(stdlib_model: Path, tmp_path: Path) -> None:
    """From a spoiled model towards the good one: nearer is better, and each point is that merge's own loss."""
    spoiled = _noisy(stdlib_model, tmp_path / "spoiled", 0.5)
    run = _run(spoiled, stdlib_model, tmp_path / "out", method="slerp", sweep=[0.9, 0.3])
    curve = dict(run.results["sweep"]["cross_entropy"])  # type: ignore[index]
    assert list(curve) == [0.0, 0.3, 0.9]
    assert curve[0.0] > curve[0.3] > curve[0.9]
    assert run.results["sweep"]["best"] == 0.9  # type: ignore[index]
    fixed = _run(spoiled, stdlib_model, tmp_path / "fixed", method="slerp", t=0.9)
    assert _same(run.out, fixed.out)
    assert curve[0.9] == pytest.approx(_oracle(fixed.out), rel=1e-5)
    assert not [path for path in run.scratch.iterdir() if path.is_dir() and list(path.glob("*.safetensors"))]
    series = Series.model_validate(run.results["series"][0])  # type: ignore[index]
    assert series.points == tuple(curve.items())


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"method": "linear"}, {"weight": 1.0, "others": [{"weight": 0.25}]}),
        ({"method": "task_arithmetic"}, {"scale": 0.25}),
        ({"method": "slerp"}, {"t": 0.25}),
    ],
)
def test_a_value_is_that_of_the_setting(settings: dict[str, Any], same: dict[str, Any]) -> None:
    other = {"model": {"id": "a/b"}}
    swept = Merge.model_validate({**settings, "others": [other], "sweep": [0.25]})
    others = [{**other, **each} for each in same.get("others", [{}])]
    assert swept.at(0.25) == Merge.model_validate({**settings, **same, "others": others})
    assert swept.rival == Merge.model_validate({"others": [other], "compare": False})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "slerp", "t": 0.3, "sweep": [0.5]}, "`sweep` chooses `t`"),
        ({"method": "ties", "scale": 0.3, "sweep": [0.5]}, "`sweep` chooses `scale`"),
        ({"method": "slerp", "sweep": [1.5]}, "ends at 1"),
        ({"method": "linear", "weight": 0, "sweep": [0.5]}, "whose `weight` is 0"),
        ({"method": "slerp", "sweep": [0]}, "greater than 0"),
    ],
)
def test_sweeps_that_do_not_fit_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Merge.model_validate({**settings, "others": [{"model": {"id": "a/b"}}]})


def test_a_model_that_predicts_no_next_token_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    encoder = tiny_model("Bert")
    with pytest.raises(RecipeError, match="does not predict the next token") as caught:
        _run(encoder, encoder, tmp_path / "out", method="slerp", sweep=[0.5])
    assert caught.value.field == "/chain/0/sweep"
    assert not list((tmp_path / "out").glob("*.safetensors"))
