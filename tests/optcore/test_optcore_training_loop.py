"""The training loop: what a step does, that a killed run goes on exactly, and what happens when things go wrong."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.disk import fill, small_disk
from fixtures.exporting import Quantize
from fixtures.training import Killed, training_run, validations
from safetensors.torch import load_file

from optcore.errors import OutOfDisk, TrainingDiverged, typed_error
from optcore.events import AnyEvent, Metric, Progress
from optcore.quantization import load_quantization
from optcore.run import Run
from optcore.techniques import Qad, Qat
from optcore.training import checkpoints, loop
from optcore.training.batches import Order
from optcore.training.schedule import learning_rate

SMALL: dict[str, Any] = {
    "steps": 6,
    "batch": 4,
    "sequence_length": 48,
    "learning_rate": 3e-4,
    "validation": {"samples": 4, "every": 2},
    "save_every": 3,
}


def _qad(**more: Any) -> Qad:
    return Qad.model_validate({**SMALL, **more})


def _losses(events: list[AnyEvent]) -> dict[int, float]:
    found = (event for event in events if isinstance(event, Metric) and event.name == "loss")
    return {int(event.step or 0): event.value for event in found}


def _digests(folder: Path) -> dict[str, str]:
    description = load_quantization(folder)
    assert description
    return {name: linear.digest for name, linear in description.linears.items()}


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("quantized-*.safetensors"))
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.fixture
def ready(quantized: Quantize, stdlib_model: Path, tmp_path: Path) -> Any:
    """`ready(technique, name)` is a run on a quantized checkpoint, and its events."""

    def make(technique: Qad | Qat, name: str, **more: Any) -> tuple[Run, list[AnyEvent]]:
        events: list[AnyEvent] = []
        checkpoint = quantized("int3_g32")
        return training_run(technique, stdlib_model, checkpoint, tmp_path / name, events, **more), events

    return make


class TestSchedule:
    def test_it_rises_and_falls(self) -> None:
        settings = _qad(steps=100, warmup=0.1, learning_rate=1.0, final_learning_rate=0.1)
        rates = [learning_rate(step, settings) for step in range(100)]
        assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
        assert rates[10] == 1.0
        assert rates[55] == pytest.approx(0.1 + 0.9 * 0.5)
        assert rates[10:] == sorted(rates[10:], reverse=True)
        assert 0.1 < rates[-1] < 0.101

    @pytest.mark.parametrize(("schedule", "middle"), [("linear", 0.5), ("constant", 1.0)])
    def test_other_schedules(self, schedule: str, middle: float) -> None:
        settings = _qad(steps=100, warmup=0.0, learning_rate=1.0, schedule=schedule)
        assert learning_rate(50, settings) == pytest.approx(middle)


class TestOrder:
    def test_every_window_once_a_round_and_anew_the_next(self) -> None:
        order = Order(10, 4, seed=1)
        places = [window for step in range(5) for window in order.windows(step)]
        assert sorted(places[:10]) == sorted(places[10:]) == list(range(10))
        assert places[:10] != places[10:]
        assert order.windows(3) == Order(10, 4, seed=1).windows(3)
        assert order.windows(3) != Order(10, 4, seed=2).windows(3)


class TestTraining:
    def test_it_wins_back_and_keeps_the_best(self, ready: Any) -> None:
        technique = _qad(steps=12, validation={"samples": 4, "every": 3})
        run, events = ready(technique, "wins")
        technique.apply(run)
        measured = validations(run, "kl")
        assert min(measured) < 0.8 * measured[0]
        found = run.results["training"]
        assert found["best"]["kl"] == min(measured)
        assert found["tokens"] == 12 * 4 * 48
        assert found["data"]["sha256"]
        assert len(_losses(events)) == 12
        assert _digests(run.out).keys() == _digests(run.checkpoint).keys()
        assert _digests(run.out) != _digests(run.checkpoint)

    def test_what_was_worse_is_not_kept(self, ready: Any) -> None:
        technique = _qad(learning_rate=0.05, warmup=0.0)
        run, _ = ready(technique, "worse")
        technique.apply(run)
        assert min(validations(run, "kl")[1:]) > validations(run, "kl")[0]
        assert run.results["training"]["best_step"] == 0
        assert _digests(run.out) == _digests(run.checkpoint)

    @pytest.mark.parametrize("micro_batch", [1, 2])
    def test_accumulated_gradients_make_the_same_step(self, ready: Any, micro_batch: int) -> None:
        whole, parts = _qad(steps=3, micro_batch=4), _qad(steps=3, micro_batch=micro_batch)
        (run, events), (run_of_parts, events_of_parts) = ready(whole, "whole"), ready(parts, "parts")
        whole.apply(run)
        parts.apply(run_of_parts)
        assert _losses(events_of_parts) == pytest.approx(_losses(events), rel=1e-5)

    def test_recomputed_activations_give_the_same(self, ready: Any) -> None:
        kept, again = _qad(steps=3, gradient_checkpointing=False), _qad(steps=3)
        (run, events), (run_again, events_again) = ready(kept, "kept"), ready(again, "again")
        kept.apply(run)
        again.apply(run_again)
        assert _losses(events_again) == _losses(events)
        assert _digests(run_again.out) == _digests(run.out)

    def test_bfloat16_products_with_float32_weights(self, ready: Any) -> None:
        technique = _qad(steps=8, precision="bfloat16")
        run, events = ready(technique, "bfloat16")
        technique.apply(run)
        assert min(validations(run, "kl")) < validations(run, "kl")[0]
        exact, exact_events = ready(_qad(steps=8), "exact")
        _qad(steps=8).apply(exact)
        assert _losses(events) == pytest.approx(_losses(exact_events), rel=0.1)
        assert _losses(events) != _losses(exact_events)

    def test_nothing_is_trained_where_nothing_is_to_win(self, ready: Any) -> None:
        technique = _qad(skip_below=10.0)
        run, events = ready(technique, "skipped")
        technique.apply(run)
        assert not _losses(events)
        assert "nothing was trained" in str(run.results["notices"])
        assert _digests(run.out) == _digests(run.checkpoint)

    def test_scales_alone(self, ready: Any) -> None:
        technique = _qad(scope="scales", learning_rate=1e-2, steps=10)
        run, _ = ready(technique, "scales")
        technique.apply(run)
        assert min(validations(run, "kl")) < 0.97 * validations(run, "kl")[0]
        before, after = _tensors(run.checkpoint), _tensors(run.out)
        moved = [name for name in after if name.endswith("weight_scale") and not torch.equal(before[name], after[name])]
        assert moved

    def test_norms_too(self, ready: Any) -> None:
        technique = _qad(norms=True, steps=8)
        run, _ = ready(technique, "norms")
        technique.apply(run)
        description = load_quantization(run.out)
        assert description
        assert run.results["training"]["best_step"] > 0
        assert "model.layers.0.input_layernorm.weight" in description.layers[0].changed

    def test_a_text_s_own_loss(self, ready: Any) -> None:
        technique = Qat.model_validate({**SMALL, "steps": 12})
        run, _ = ready(technique, "qat")
        technique.apply(run)
        assert validations(run, "cross_entropy")[-1] < validations(run, "cross_entropy")[0]


class TestResume:
    @pytest.mark.parametrize("at", [1, 4, 5])
    def test_a_killed_run_goes_on_exactly(self, ready: Any, at: int) -> None:
        """Killed before the first checkpoint, right behind one, and between a better validation and its checkpoint."""
        technique = _qad()
        whole, events = ready(technique, "whole")
        technique.apply(whole)
        run, seen = ready(technique, "killed")

        def emit(event: AnyEvent) -> None:
            seen.append(event)
            if isinstance(event, Metric) and event.name == "loss" and event.step == at:
                raise Killed

        run.emit = emit
        with pytest.raises(Killed):
            technique.apply(run)
        run.emit = seen.append
        run.results.clear()
        technique.apply(run)
        assert _losses(seen) == _losses(events)
        assert run.results["series"] == whole.results["series"]
        before, after = _tensors(whole.out), _tensors(run.out)
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_better_parameters_do_not_pile_up_between_checkpoints(self, ready: Any) -> None:
        """Those that the last checkpoint names stay for a killed run, and the best of all."""
        technique = _qad(steps=8, validation={"samples": 4, "every": 1}, save_every=8)
        run, events = ready(technique, "piles")
        kept: list[list[str]] = []

        def emit(event: AnyEvent) -> None:
            events.append(event)
            if isinstance(event, Progress) and event.phase == "training":
                kept.append(sorted(path.name for path in run.journal.glob("best-*")))

        run.emit = emit
        technique.apply(run)
        print(kept)
        assert len({name for names in kept for name in names}) >= 3
        assert all(len(names) == 2 and names[0] == "best-00000000" for names in kept[:-1])
        assert kept[-1] == [f"best-{run.results['training']['best_step']:08d}"]

    def test_a_full_disk_keeps_the_checkpoint_before(self, ready: Any, tmp_path: Path) -> None:
        technique = _qad(save_every=1)
        whole, events = ready(technique, "whole")
        technique.apply(whole)
        run, seen = ready(technique, "full")
        with small_disk(tmp_path / "small", 220) as small:
            run.journal = small / "journal"
            run.journal.mkdir()

            def emit(event: AnyEvent) -> None:
                seen.append(event)
                if isinstance(event, Metric) and event.name == "loss" and event.step == 4:
                    fill(small)

            run.emit = emit
            with pytest.raises(Exception, match="No space left") as caught:
                technique.apply(run)
            assert isinstance(typed_error(caught.value, "2-qad"), OutOfDisk)
            assert [path.name for path in sorted(run.journal.glob("step-*"))] == ["step-00000003"]
            (small / "ballast").unlink()
            run.emit = seen.append
            run.results.clear()
            technique.apply(run)
        assert _losses(seen) == _losses(events)
        assert _digests(run.out) == _digests(whole.out)


class TestTrouble:
    def test_a_loss_that_is_no_number_before_anything_was_gained(
        self, ready: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loop, "learning_rate", lambda step, _: 1e30 if step == 1 else 1e-9)
        technique = _qad(save_every=1)
        run, _ = ready(technique, "diverges")
        with pytest.raises(TrainingDiverged, match="at step 3 of 6, and nothing was gained"):
            technique.apply(run)

    def test_a_loss_that_is_no_number_later_keeps_the_best(self, ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loop, "learning_rate", lambda step, _: 1e30 if step == 4 else 3e-4)
        technique = _qad()
        run, events = ready(technique, "diverges")
        technique.apply(run)
        assert run.results["diverged"] == 6
        assert run.results["training"]["best_step"] == 4
        assert "training stopped, and the best parameters, of step 4, were kept" in str(run.results["notices"])
        assert _digests(run.out) != _digests(run.checkpoint)
        assert all(math.isfinite(value) for value in _losses(events).values())


def test_a_checkpoint_is_whole_or_not_there(ready: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies while it writes leaves no folder that looks like a checkpoint."""
    technique = _qad(steps=2, save_every=1)
    run, _ = ready(technique, "half")
    written: list[Path] = []

    def die(tensors: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        written.append(path)
        raise Killed

    monkeypatch.setattr(checkpoints, "save_file", die)
    with pytest.raises(Killed):
        technique.apply(run)
    assert written
    assert run.journal
    assert not list(run.journal.iterdir())
