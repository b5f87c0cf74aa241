"""Scores are what their formula says, and they predict the divergence that rounding one part of the model causes."""

from pathlib import Path

import pytest
import torch
from fixtures.exporting import run_of
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForCausalLM

from optcore.calibration.candidates import score_units
from optcore.calibration.quantize import quantize_checkpoint
from optcore.calibration.sensitivity import HeldOut, InputSample, input_score, weight_score
from optcore.calibration.statistics import Observer
from optcore.calibration.text import Texts
from optcore.references import Calibration
from optcore.streaming.quantized import QuantizedCheckpoint
from optcore.techniques import AutoQuantize

CALIBRATION = Calibration(dataset="python-stdlib", samples=16, sequence_length=256)


def test_scores_are_means_over_tokens() -> None:
    generator = _generator()
    x_TK, change_NK = torch.randn(50, 8, generator=generator), torch.randn(6, 8, generator=generator)
    g_N = torch.rand(6, generator=generator)
    gram_KK = x_TK.T @ x_TK / 50
    expected = 0.5 * 0.25 * ((x_TK @ change_NK.T).square() * g_N).sum(1).mean()
    assert weight_score(g_N, 0.25, change_NK, gram_KK) == pytest.approx(float(expected), rel=1e-5)
    assert input_score(g_N, 0.25, x_TK @ change_NK.T) == pytest.approx(float(expected), rel=1e-5)


def test_a_sample_is_spread_over_all_tokens() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2))
    sample = InputSample(layer, [["0"]], 4096)
    tokens = torch.arange(4096.0).repeat(2, 1).T
    for batch in tokens.split(1024):
        layer(batch.view(4, 256, 2))
    taken = sample.finished()[("0",)]
    assert taken is not None
    assert 200 <= len(taken) <= 300
    positions = (taken[:, 0] % 256).long()
    assert len(positions.unique()) > 150
    assert len(layer[0]._forward_pre_hooks) == 0


def test_what_is_held_out_is_not_in_the_rest() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2))
    observer, held_out = Observer(layer, [["0"]], gram=True), HeldOut(layer, [["0"]])
    batches = torch.randn(3, 8, 3, generator=_generator())
    with observer.measuring():
        for batch in batches:
            layer(batch)
    rest, judge_KK = held_out.parted(observer.finished())[("0",)]
    first, last = batches[:, :6].flatten(0, 1), batches[:, 6:].flatten(0, 1)
    assert rest.tokens == len(first) == 18
    torch.testing.assert_close(rest.gram_KK, first.T @ first / 18)
    torch.testing.assert_close(judge_KK, last.T @ last / 6)
    assert len(layer[0]._forward_pre_hooks) == 0


def test_few_tokens_judge_themselves() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2))
    observer, held_out = Observer(layer, [["0"]], gram=True), HeldOut(layer, [["0"]])
    with observer.measuring():
        layer(torch.randn(3, 3, generator=_generator()))
    rest, judge_KK = held_out.parted(observer.finished())[("0",)]
    assert rest.tokens == 3
    assert judge_KK is rest.gram_KK


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("scheme", "rounding"),
    [("int3_g64", "nearest"), ("mxfp4_w4a16", "nearest"), ("int8_w8a16", "nearest"), ("nvfp4_w4a16", "gptq")],
)
def test_scores_rank_the_true_divergence(scheme: str, rounding: str, stdlib_model: Path, tmp_path: Path) -> None:
    """One unit at a time is rounded in the whole model in memory; its KL on held-out text is set against its score."""
    settings = {"rounding": rounding, "smoothing": "none", "propagate": "original"}
    technique = AutoQuantize.model_validate({"candidates": (scheme, "none"), "effective_bits": 16, **settings})
    run = run_of(stdlib_model, stdlib_model, tmp_path / "out", calibration=CALIBRATION)
    units = score_units(run, technique)
    quantize_checkpoint(run, technique.quantizing)
    rounded = QuantizedCheckpoint(run.out)
    model = AutoModelForCausalLM.from_pretrained(stdlib_model, dtype=torch.float32).eval()
    tokens_BT = Texts(stdlib_model, CALIBRATION, ()).evaluation_windows(8, 256, 1024)
    with torch.no_grad():
        source = log_softmax(model(tokens_BT).logits, -1)
        true = []
        for unit in units:
            kept = [model.get_submodule(name).weight.data for name in unit.modules]
            for name in unit.modules:
                model.get_submodule(name).weight.data = rounded.weight(name)
            own = log_softmax(model(tokens_BT).logits, -1)
            true.append(kl_div(own, source, log_target=True, reduction="sum").item() / tokens_BT.numel())
            for name, weight in zip(unit.modules, kept, strict=True):
                model.get_submodule(name).weight.data = weight
    scores = [unit.candidates[scheme].score for unit in units]
    found = rank_correlation(scores, true)
    print(
        f"{scheme}: rank correlation {found:.3f} over {len(units)} units; scores add up to {sum(scores):.5f}, ", end=""
    )
    print(f"true divergences to {sum(true):.5f} nats/token")
    assert found >= 0.8
    assert 0.5 < sum(scores) / sum(true) < 2


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's."""
    ranks = torch.stack([torch.tensor(values).argsort().argsort().double() for values in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])
