"""The benchmark of a GPU, where there is none: its arithmetic by hand, and every function once on tiny shapes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.gpu.case import Case, Goal, Work
from benchmarks.gpu.clock import seconds_of
from benchmarks.gpu.command import NO_GPU, measured
from benchmarks.gpu.compare import compare
from benchmarks.gpu.floors import (
    LLAMA_8B,
    Llama,
    Rates,
    awq_s,
    distillation_step_s,
    factor_flop,
    forward_flop,
    forward_s,
    gptq_bytes,
    gptq_s,
    gptq_single_pass_s,
    gram_flop,
    host_bytes,
    update_flop,
)
from benchmarks.gpu.limits import Limits, measure_limits
from benchmarks.gpu.registry import cases
from benchmarks.gpu.sizes import TINY
from benchmarks.gpu.table import HEADER, Row, document_of, markdown_of
from optcore.kernels.dispatch import SWITCH

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
LIMITS = Limits(copy=4e12, bf16=7e14, float32=5e13, host_to_device=5e10)
TOKENS, LENGTH = 512 * 2048, 2048
LLAMA_70B, LLAMA_405B = Llama(80, 8192, 28672, 1024, 128256), Llama(126, 16384, 53248, 1024, 128256)
A100, H100 = Rates(312e12, 19.5e12), Rates(989e12, 67e12)


@pytest.mark.parametrize(
    ("model", "forward", "gram", "factor", "update"),
    [
        (LLAMA_8B, 1.5e16, 8.6e15, 1.4e14, 4.8e13),
        (LLAMA_70B, 1.5e17, 8.6e16, 2.7e15, 9.5e14),
        (LLAMA_405B, 8.5e17, 4.8e17, 2.8e16, 1.1e16),
    ],
)
def test_flop_are_those_of_tables_made_by_hand(
    model: Llama, forward: float, gram: float, factor: float, update: float
) -> None:
    """Two digits of them are known; a wrong term is worth more than the half of the last one, and the fifth of a tenth
    that theirs is more by."""
    found = [forward_flop(model, TOKENS, LENGTH), gram_flop(model, TOKENS), factor_flop(model), update_flop(model)]
    assert found == pytest.approx([forward, gram, factor, update], rel=0.045)


def test_flop_of_a_model_of_ones_are_counted_on_fingers() -> None:
    one = Llama(layers=1, hidden=1, inner=1, keys=1, vocabulary=1)
    assert one.parameters == 7
    assert forward_flop(one, 3, 2) == 2 * 7 * 3 + 2 * 3 * 2
    assert gram_flop(one, 3) == 3 * 4
    assert factor_flop(one) == pytest.approx(16 / 3)
    assert update_flop(one) == 7
    assert distillation_step_s(one, 1, 1, Rates(1, 1)) == 10 * 7 + 5 * 2 + 8
    assert awq_s(one, 3, 2, Rates(1, 1)) == 54 + 12 + 40 * 7
    assert gptq_bytes(one) == 2 * 7 + 4 * 4 + 4


def test_seconds_and_bytes_are_those_of_tables_made_by_hand() -> None:
    assert gptq_s(LLAMA_8B, TOKENS, LENGTH, A100) == pytest.approx(132, rel=0.005)
    assert gptq_s(LLAMA_8B, TOKENS, LENGTH, H100) == pytest.approx(41, rel=0.015)
    assert gptq_s(LLAMA_70B, TOKENS, LENGTH, A100) == pytest.approx(1357, rel=0.01)
    assert gptq_s(LLAMA_8B, TOKENS // 4, LENGTH, H100) == pytest.approx(12, rel=0.05)
    single = gptq_single_pass_s(LLAMA_8B, TOKENS, LENGTH, H100)
    assert single == pytest.approx(25, rel=0.05)
    assert single + forward_s(LLAMA_8B, TOKENS, LENGTH, H100) == gptq_s(LLAMA_8B, TOKENS, LENGTH, H100)
    assert gptq_bytes(LLAMA_8B) == pytest.approx(1.7e9, rel=0.01)
    assert gptq_bytes(LLAMA_70B) == pytest.approx(6.7e9, rel=0.01)
    assert host_bytes(LLAMA_8B, TOKENS) == pytest.approx(8.6e9, rel=0.01)


def test_a_row_says_what_was_found_and_whether_it_is_enough() -> None:
    row = Row("pack", "2 x 4", "copy", "s", 2e-3, 1.5e-3, 8e-3, 0.0, {"compiled": 3e-3}, Goal(0.75))
    cells = [cell.strip() for cell in row.markdown().strip("|").split("|")]
    assert cells == [
        "pack", "2 x 4", "2.000 ms", "75.0% of copy", "8.000 ms", "4.00x", "compiled 3.000 ms", "equal", ">= 75%", "yes"
    ]  # fmt: skip
    assert len(cells) == HEADER.splitlines()[0].count("|") - 1
    slow = Row("pack", "2 x 4", "copy", "s", 2.1e-3, 1.5e-3, goal=Goal(0.75))
    assert (row.is_met, slow.is_met) == (True, False)
    assert "**no**" in slow.markdown()


def test_targets_are_shares_or_times_a_rival() -> None:
    floor = Row("GPTQ", "8B", "floor", "s", 25.0, 10.0, goal=Goal(1 / 2.5, text="<= 2.5x floor"))
    assert "40.0% (2.50x floor)" in floor.markdown()
    assert "25.00 s" in floor.markdown()
    assert floor.is_met
    peak = Row("GPTQ", "8B", "formula", "bytes", 2.6e9, 1.7e9, goal=Goal(1 / 1.5, text="<= 1.5x formula"))
    assert "2.60 GB" in peak.markdown()
    assert peak.is_met is False
    decode = Row("W4A16", "1", "copy", "s", 1e-5, 9e-6, beside={"bf16": 3.1e-5}, goal=Goal(3, "bf16"))
    assert decode.is_met
    assert ">= 3x bf16" in decode.markdown()
    absent = Row("W4A16", "1", "copy", "s", 1e-5, 9e-6, beside={"bf16": "ImportError"}, goal=Goal(3, "bf16"))
    assert absent.is_met is None
    assert "bf16 ImportError" in absent.markdown()
    assert Row("W4A16", "1", "copy", goal=Goal(3, "bf16"), problem="no kernel ran").is_met is False


def test_a_run_is_a_document() -> None:
    row = Row("pack", "2 x 4", "copy", "s", 2e-3, 1.5e-3, goal=Goal(0.75))
    document = json.loads(json.dumps(document_of({"device": "none"}, LIMITS, [row], 2.5)))
    assert document["limits"]["copy"] == 4e12
    assert document["rows"][0] | {"share": 0.75, "met": True, "goal": ">= 75%", "unit": "s"} == document["rows"][0]
    assert markdown_of(LIMITS) == ("copy 4.00 TB/s, bf16 700 TFLOP/s, float32 50.0 TFLOP/s, pinned to device 50.0 GB/s")


def test_limits_are_bytes_and_flop_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert min(measure_limits(CPU, 4096, ((8, 8, 8),))) > 0
    monkeypatch.setattr("benchmarks.gpu.limits.seconds_of", lambda run, device: run() is None or 0.5)
    assert measure_limits(CPU, 4096, ((8, 16, 4), (2, 2, 2))) == (16384, 2048, 2048, 8192)


@pytest.mark.parametrize("case", list(cases(TINY)), ids=lambda case: f"{case.kernel} {case.shape}")
def test_every_case_runs_and_is_its_own_definition_on_a_cpu(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rivals too, where they are installed; to compile anything for a CPU would take minutes, and prove nothing."""
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    monkeypatch.setenv(SWITCH, "torch")
    monkeypatch.setattr("benchmarks.gpu.compare.seconds_of", lambda run, device: seconds_of(run, device, 0.0))
    row = compare(case, LIMITS, CPU)
    assert row.apart == 0
    assert row.problem == ""
    assert row.taken
    assert row.ideal
    assert {said for said in row.beside.values() if isinstance(said, str)} <= {"ModuleNotFoundError"}
    assert os.environ[SWITCH] == "torch"


def test_a_kernel_that_gives_something_else_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)

    def prepare(device: torch.device) -> Work:
        assert os.environ[SWITCH] == "torch", "both sides get what definitions make"
        return Work(lambda: torch.tensor([1.0, 1.0 if os.environ.get(SWITCH) == "torch" else 1.25]))

    row = compare(Case("odd", "2", "copy", 8, prepare, tolerance=0.1), LIMITS, CPU)
    assert row.apart == pytest.approx(0.25 / 2**0.5)
    assert "1.8e-01 apart, 1.0e-01 is allowed" in row.markdown()
    assert compare(Case("odd", "2", "copy", 8, prepare, tolerance=0.2), LIMITS, CPU).problem == ""


def test_whole_stages_run_on_a_tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.command.cases", lambda sizes: iter(()))
    model = Llama(layers=2, hidden=128, inner=256, keys=64, vocabulary=2048)
    tokenizer = ROOT / "models" / "stdlib-5m"
    rows = list(measured(CPU, LIMITS, tokenizer, model, time.monotonic(), TINY, windows=4, length=32))
    assert [row.what for row in rows] == [
        "GPTQ INT4", "AWQ INT4", "NVFP4 nearest", "NVFP4 searched", "QAD NVFP4, a step"
    ]  # fmt: skip
    assert [row.problem for row in rows] == [""] * 5
    assert all(row.share for row in rows)


def test_what_fails_or_finds_no_time_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> Work:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("benchmarks.gpu.command.cases", lambda sizes: [Case("odd", "2", "copy", 8, broken)])
    monkeypatch.setattr("benchmarks.gpu.command.PTQ", ())
    monkeypatch.setattr("benchmarks.gpu.command.write_random_llama", lambda *arguments: None)
    model = Llama(1, 128, 256, 64, 300)
    late = measured(CPU, LIMITS, ROOT, model, time.monotonic() - 1e4)
    assert [row.problem for row in late] == ["no time was left"] * 2
    now = measured(CPU, LIMITS, ROOT, model, time.monotonic())
    assert next(now).problem == "RuntimeError: out of memory"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_machine_without_a_gpu_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--out", str(tmp_path / "gpu.json")])
    assert main() == NO_GPU
    assert capsys.readouterr().err == "no CUDA device on this machine: kernels are measured on a GPU only\n"
    assert list(tmp_path.iterdir()) == []


def test_what_the_service_needs_is_not_imported_for_a_gpu() -> None:
    """On a rented machine there is torch and little else."""
    code = "import sys, benchmarks.__main__, benchmarks.gpu.command; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"lathe", "api", "worker", "sqlalchemy", "fastapi", "gguf", "onnx", "yaml", "triton"}
