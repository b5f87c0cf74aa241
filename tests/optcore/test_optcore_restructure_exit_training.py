"""Exits that train: layer dropout, weights of exits, and a run that goes on where it was killed."""

from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.tiny_models import make_model
from fixtures.training import Killed, ending_at, training_run
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import AutoModelForCausalLM

from optcore.errors import DataError
from optcore.streaming.decoder import Decoder
from optcore.techniques import EarlyExit
from optcore.training import loop
from optcore.training.exit_stage import train_exits
from optcore.training.exit_trainee import ExitTrainee, exit_weights, turn
from optcore.training.layer_dropout import drop_layers, dropout_rates
from optcore.training.student import Student
from optcore.training.teacher import LiveTeacher
from optcore.training.windows import LEARNED, Batch, Windows

RANDOM = {"kind": "random"}
SHORT = {
    "threshold": 0.5,
    "batch": 2,
    "sequence_length": 32,
    "validation": {"samples": 2},
    "samples": 2,
    "learning_rate": 1e-3,
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, stdlib_model: Path) -> Path:
    """Deep enough that more exits than the first train."""
    return make_model("Llama", {"num_hidden_layers": 4}, tmp_path_factory.mktemp("llama"), stdlib_model)


def test_dropout_rises_exponentially_to_its_largest() -> None:
    assert dropout_rates(4, 0.3) == pytest.approx([0, 0.3 * (2 ** (1 / 3) - 1), 0.3 * (2 ** (2 / 3) - 1), 0.3])
    assert dropout_rates(1, 0.3) == [0]
    assert dropout_rates(3, 0.0) == [0, 0, 0]


def test_windows_skip_layers_while_training_only() -> None:
    class Adds(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return hidden_states + 1

    layers = [Adds() for _ in range(3)]
    drop_layers(layers, 0.5)
    start_BTH = torch.zeros(4000, 2, 3)
    torch.manual_seed(0)
    skipped = [1 - layer(start_BTH)[:, 0, 0].mean().item() for layer in layers]
    assert skipped == pytest.approx(dropout_rates(3, 0.5), abs=0.02)
    out_BTH = layers[2](start_BTH)
    assert torch.equal(out_BTH, out_BTH[:, :1, :1].expand_as(out_BTH))  # a window as a whole
    for layer in layers:
        assert torch.equal(layer.eval()(start_BTH), start_BTH + 1)


def test_weights_of_exits_are_the_papers() -> None:
    found = exit_weights([1, 2, 3], 4, 0.5)  # e: 0, .5 (0 + 1), .5 (0 + 1 + 2), 3 + .5 (0 + 1 + 2)
    assert found == pytest.approx({1: 0.0, 2: 0.5 / 6.5, 3: 1.5 / 6.5, 4: 4.5 / 6.5})
    assert exit_weights([], 4, 1.0) == {4: 1.0}
    assert exit_weights([1], 2, 1.0) == {1: 0.0, 2: 1.0}


def test_exits_take_turns() -> None:
    assert [turn([2, 4, 6], 2, step) for step in range(3)] == [[2, 6], [4], [2, 6]]
    assert turn([2, 4, 6], 1, 5) == [2, 4, 6]


@pytest.mark.parametrize("kind", ["forward_kl", "cross_entropy"])
def test_the_loss_is_the_weighted_sum_over_transformers_own_hidden_states(
    kind: str, llama: Path, stdlib_model: Path
) -> None:
    technique = EarlyExit.model_validate({"losses": [{"kind": kind}]})
    student = Student(llama)
    student.model.requires_grad_()
    teacher = LiveTeacher(stdlib_model, student.decoder.device) if kind == "forward_kl" else None
    layers, steps = len(student.layers), 4
    settings: dict[str, Any] = {"exits": range(1, layers), "scale": 1.0, "rotation": 1, "steps": steps}
    trainee = ExitTrainee(student, technique.losses, teacher, 0, **settings)
    tokens_BT = torch.arange(4, 28).view(2, 12)
    batch = Batch(tokens_BT, torch.full_like(tokens_BT, LEARNED, dtype=torch.uint8))
    loss = trainee(batch, [0, 1], 0.25)
    loss.backward()

    model: Any = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    hidden = model(tokens_BT, output_hidden_states=True).hidden_states
    said: list[torch.Tensor] = []
    for depth in range(1, layers + 1):
        normed = hidden[-1] if depth == layers else model.model.norm(hidden[depth])
        said.append(model.lm_head(normed)[:, :-1].flatten(0, 1))
    answers = teacher.model(tokens_BT).logits[:, :-1].flatten(0, 1) if teacher else None
    expected = torch.zeros(())
    for depth, weight in exit_weights(range(1, layers), layers, 1.0).items():
        own = log_softmax(said[depth - 1], -1)
        if answers is None:
            expected = expected + weight * cross_entropy(said[depth - 1], tokens_BT[:, 1:].flatten(), reduction="sum")
        else:
            expected = expected + weight * kl_div(own, log_softmax(answers, -1), log_target=True, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    expected.backward()
    found = student.model.model.layers[0].mlp.up_proj.weight.grad
    torch.testing.assert_close(found, model.model.layers[0].mlp.up_proj.weight.grad, rtol=1e-4, atol=1e-6)

    sums = trainee.eval()(batch, [0, 1], None)
    torch.testing.assert_close(sums["exit_loss"].float(), expected.detach(), rtol=1e-5, atol=1e-6)
    same = (said[0].argmax(-1) == said[-1].argmax(-1)).sum()
    assert sums["agreement_after_1"] == same
    assert set(sums) == set(trainee.measures)


def test_a_killed_run_goes_on_to_the_same_bytes(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = count()
    monkeypatch.setattr(loop, "judge", lambda *_: next(measured))  # asked of the new ones first: the last are kept
    technique = EarlyExit.model_validate({"steps": 4, "save_every": 1, "dropout": 0.5, **SHORT, "data": RANDOM})
    depth = len(Decoder(llama))
    whole = training_run(technique, llama, llama, tmp_path / "whole")
    unseen_ST = train_exits(whole, technique, range(1, depth))
    killed = training_run(technique, llama, llama, tmp_path / "killed")
    with pytest.raises(Killed), ending_at(killed, 2):
        train_exits(killed, technique, range(1, depth))
    train_exits(killed, technique, range(1, depth))
    before, after = (load_file(run.out / "model.safetensors") for run in (whole, killed))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert whole.results["training"] == killed.results["training"]
    start = load_file(llama / "model.safetensors")
    assert any(not torch.equal(before[name], start[name]) for name in before)
    assert unseen_ST.shape[1] == 32


def test_windows_for_the_threshold_are_neither_trained_nor_validated_on(llama: Path, tmp_path: Path) -> None:
    technique = EarlyExit.model_validate({"steps": 12, "data": RANDOM, **SHORT})
    run = training_run(technique, llama, llama, tmp_path)
    unseen_ST = train_exits(run, technique, [1])
    noted: Any = run.results["training"]
    facts = noted["data"]
    assert facts["windows"] == 12 * 2 + 2
    assert facts["validation"] == 2
    assert len(unseen_ST) == 2
    assert torch.equal(Windows(run.windows).read([26, 27]).tokens_BT, unseen_ST)


def test_text_that_no_risk_can_be_tested_on_is_refused_before_training(llama: Path, tmp_path: Path) -> None:
    technique = EarlyExit.model_validate({"steps": 12, "data": RANDOM, **SHORT, "threshold": None})
    run = training_run(technique, llama, llama, tmp_path)
    with pytest.raises(DataError, match=r"2 windows .* a risk of 0\.05 takes at least 59"):
        train_exits(run, technique, [1])
    assert not list(run.out.iterdir())
