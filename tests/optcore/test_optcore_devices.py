"""Rounding spread over several devices, here several times the CPU: the same checkpoint, one failure, equal shares."""

from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from threading import Barrier, current_thread, main_thread
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tensor_bytes import TensorBytes
from fixtures.tiny_models import MakeModel

from optcore.algorithms.gptq import gptq, gptq_batch
from optcore.algorithms.scales import find_scales
from optcore.calibration.devices import computing_devices, each_on_its_own, shares
from optcore.calibration.quantize import quantize_checkpoint
from optcore.calibration.rounding import Fused, Problem, round_weights
from optcore.calibration.statistics import InputStatistics
from optcore.errors import OutOfMemory
from optcore.kernels.counting import counting
from optcore.kernels.dispatch import SWITCH
from optcore.references import Calibration
from optcore.schemes import PRESETS
from optcore.techniques import Ptq
from optcore.techniques.options import Gptq

FEW = Gptq(sweeps=1, refit=False)
CPU = torch.device("cpu")
CALIBRATION = Calibration(dataset="python-stdlib", samples=2, sequence_length=32)


@pytest.mark.parametrize(
    ("family", "technique"),
    [
        ("Qwen3Moe", Ptq(scheme="int4_g32", propagate="quantized", smoothing="none", scale_search="max", gptq=FEW)),
        ("Llama", Ptq(scheme="nvfp4", rounding="nearest", smoothing="none")),
    ],
    ids=["gptq", "nearest"],
)
def test_three_devices_write_the_checkpoint_of_one(
    family: str, technique: Ptq, tiny_model: MakeModel, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    written = []
    for devices in ([CPU], [CPU, CPU, CPU]):
        model = tiny_model(family)
        run = run_of(model, model, tmp_path / str(len(devices)), calibration=CALIBRATION)
        quantize_checkpoint(run, technique, devices=devices)
        files = sorted(path for path in run.out.rglob("*") if path.suffix == ".safetensors" or "quant" in path.name)
        written.append({path.name: path.read_bytes() for path in files})
    assert len(written[0]) > 2
    assert written[0] == written[1]


def test_a_thread_that_runs_out_of_memory_ends_the_pass_with_what_the_layer_takes(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        assert current_thread() is not main_thread()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("optcore.calibration.rounding.gptq_batch", full)
    model = tiny_model("Llama")
    run = run_of(model, model, tmp_path / "out", calibration=CALIBRATION)
    with pytest.raises(OutOfMemory, match=r"model\.layers\.0 ran out of memory"):
        quantize_checkpoint(run, Ptq(scheme="int4_g32", smoothing="none", gptq=FEW), devices=[CPU, CPU])


def test_the_first_failure_is_raised_as_it_was_and_stops_the_others() -> None:
    met, seen = Barrier(2, timeout=60), list[int]()

    def endless() -> Iterator[int]:
        for number in count():
            if number == 1:
                met.wait()
            seen.append(number)
            yield number

    def failing() -> Iterator[int]:
        met.wait()
        yield 0
        raise KeyError("this one")

    with pytest.raises(KeyError, match="this one"):
        each_on_its_own([CPU, CPU], [endless, failing])
    assert seen == list(range(len(seen)))  # it ended: this line is reached


def test_works_give_what_they_gave_in_their_order_and_record_no_gradients() -> None:
    x = torch.ones(3, requires_grad=True)

    def doubled(number: int) -> Iterator[torch.Tensor]:
        yield x * number
        yield x * number * 2

    given = each_on_its_own([CPU] * 3, [partial(doubled, number) for number in range(3)])
    assert [[float(one[0]) for one in part] for part in given] == [[0, 0], [1, 2], [2, 4]]
    assert not any(one.requires_grad for part in given for one in part)


def test_shares_are_equal_as_far_as_whole_costs_allow() -> None:
    assert shares([1, 5, 3, 3, 2], 2) == [[1, 4], [0, 2, 3]]
    assert shares([4.0], 3) == [[0], [], []]
    costs = [float(number % 17 + 1) for number in range(100)]
    found = shares(costs, 4)
    assert sorted(place for share in found for place in share) == list(range(100))
    assert max(sum(costs[place] for place in share) for share in found) <= 1.02 * sum(costs) / 4


def test_the_cpu_computes_alone() -> None:
    assert computing_devices(CPU) == (CPU,)


def _problem(rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    x_TK = torch.randn(2 * columns, columns, generator=random) @ torch.randn(columns, columns, generator=random)
    return torch.randn(rows, columns, generator=random), x_TK.mT @ x_TK / len(x_TK)


@pytest.mark.parametrize("scheme", ["int4_g32", "int8", "nvfp4", "fp8"])
def test_siblings_that_share_a_factor_are_each_alone(scheme: str) -> None:
    """Bit for bit, where products are of one matrix at a time."""
    args, options = PRESETS[scheme].weights, Gptq(sweeps=1, asymmetry=0.3)
    problems = [_problem(24, 160, seed) for seed in range(3)]
    grams = [problems[0][1], problems[1][1], problems[0][1]]
    crosses = [gram_KK * 0.9 for gram_KK in grams]
    scales = [find_scales([weight_NK], args, "max", torch.bfloat16)[0] for weight_NK, _ in problems]
    weights = [weight_NK for weight_NK, _ in problems]
    pulls = [0.3, 0.1, 0.2]
    together = gptq_batch(weights, grams, scales, args, options, crosses, pulls, apart=True)
    for place, one in enumerate(together):
        pulled = options.model_copy(update={"asymmetry": pulls[place]})
        alone = gptq(weights[place], grams[place], scales[place], args, pulled, crosses[place])
        assert torch.equal(one.weight_NK, alone.weight_NK)
        assert torch.equal(one.scales.scale.float(), alone.scales.scale.float())
        assert (one.loss, one.nearest_loss, one.damping) == (alone.loss, alone.nearest_loss, alone.damping)


def test_weights_of_one_group_part_where_they_share_no_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = list[int]()

    def seen(weights: list[torch.Tensor], *given: Any, **named: Any) -> object:
        batches.append(len(weights))
        return gptq_batch(weights, *given, **named)

    monkeypatch.setattr("optcore.calibration.rounding.gptq_batch", seen)
    weight_NK, gram_KK = _problem(8, 64, 0)
    found = InputStatistics(10, torch.ones(64), gram_KK)
    for scheme in ("int4_g32", "nvfp4"):
        group = Fused(dict.fromkeys(("gate", "up"), weight_NK), PRESETS[scheme], found)
        made = round_weights([group], Ptq(scheme=scheme, gptq=FEW), torch.bfloat16, [CPU, CPU])
        assert torch.equal(made["gate"].weight_NK, made["up"].weight_NK)
    assert batches == [1, 1, 2]


@pytest.mark.parametrize("count", [1, 2])
def test_a_level_without_a_format_gives_nothing(count: int) -> None:
    assert round_weights([], Ptq(scheme="int4_g32"), torch.bfloat16, [CPU] * count) == {}


def test_plain_rounding_takes_two_launches_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    weight_NK = _problem(6, 128, 0)[0].bfloat16()
    group = Fused({"gate": weight_NK, "up": weight_NK * 0.7}, PRESETS["int4_g32"], InputStatistics())
    technique = Ptq(scheme="int4_g32", rounding="nearest", scale_search="max")
    plain = round_weights([group], technique, torch.bfloat16, [CPU])
    monkeypatch.setenv(SWITCH, "triton")
    with counting() as counts:
        launched = round_weights([group], technique, torch.bfloat16, [CPU])
    assert counts.launches == {"choose_group_scales": 2, "round": 2}
    for path, one in launched.items():
        assert one.digest == plain[path].digest
        assert all(torch.equal(tensor, plain[path].stored[suffix]) for suffix, tensor in one.stored.items())


def test_one_factor_serves_siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    weight_NK, gram_KK = _problem(8, 64, 0)
    found = InputStatistics(10, torch.ones(64), gram_KK)
    group = Fused(dict.fromkeys(("q", "k", "v"), weight_NK), PRESETS["int4_g32"], found)
    sizes = []
    cholesky = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda given: sizes.append(len(given)) or cholesky(given))
    made = round_weights([group], Ptq(scheme="int4_g32", scale_search="max"), torch.bfloat16, [CPU])
    assert list(made) == ["q", "k", "v"]
    assert sizes == [1]


@pytest.mark.parametrize(("rows", "columns"), [(64, 256), (256, 64)])
def test_a_batch_takes_the_memory_that_it_is_reckoned_with(rows: int, columns: int) -> None:
    args = PRESETS["int4_g32"].weights
    problems = []
    for seed in range(4):
        weight_NK, gram_KK = _problem(rows, columns, seed)
        (scales,) = find_scales([weight_NK], args, "max", torch.bfloat16)
        problems.append(Problem(str(seed), weight_NK, gram_KK, None, scales, args, 0.0))
    with TensorBytes() as counted:
        gptq_batch(
            [one.weight_NK for one in problems],
            [one.gram_KK for one in problems],
            [one.scales for one in problems],
            args,
            Gptq(),
        )
    reckoned = sum(one.working_bytes() for one in problems)
    print(f"peak {counted.peak}, reckoned {reckoned}")
    assert 0.6 * reckoned < counted.peak <= reckoned
