"""Acceptance of the comparison of engines: its harness is exact, and one job shows all of its targets side by side."""

import time
from pathlib import Path

import pytest
from fixtures.engine_runs import recipe_for, run_program
from fixtures.exporting import run_of

from optcore.evaluate import Engines
from optcore.report import EngineRun, Report
from optcore.report.text import render_table

pytestmark = pytest.mark.proof


def test_engines_with_the_sources_own_weights_have_no_divergence(
    served_gguf: Path, served_onnx: Path, stdlib_model: Path, tmp_path: Path
) -> None:
    """Float32 weights in llama.cpp, whose KV cache is in float16, and in ONNX Runtime: KL below 1e-6."""
    for target, exported in (("gguf", served_gguf), ("onnx", served_onnx)):
        run = run_of(stdlib_model, stdlib_model, tmp_path / target)
        run.export, run.target = exported, target
        started = time.perf_counter()
        Engines(source=False).measure(run)
        seconds = time.perf_counter() - started
        rows = run.results["engine_runs"]
        assert isinstance(rows, list)
        (found,) = map(EngineRun.model_validate, rows)
        print(
            f"{found.engine} {found.engine_version}: KL {found.kl:.2e} over {found.positions} positions, agreement "
            f"{found.agreement}, load {found.load_seconds:.3f} s, prefill {found.prefill_speed:.0f} and decode "
            f"{found.decode_speed:.0f} tokens/s on {found.threads} threads, "
            f"peak {found.peak_memory_bytes / 1e6:.0f} MB; {seconds:.1f} s in all"
        )
        assert found.kl is not None
        assert found.kl < 1e-6
        assert found.agreement == 1


@pytest.mark.slow
def test_one_job_shows_its_targets_side_by_side(stdlib_model: Path, tmp_path: Path) -> None:
    """Each target in the engine that serves it on this machine, the source once, and no failure for the one that none
    here reads."""
    also = [{"format": "gptq"}]
    small = {"evaluator": "engines", "prompt_tokens": 32, "new_tokens": 8, "samples": 4, "sequence_length": 64}
    document = recipe_for(stdlib_model, {"technique": "ptq", "scheme": "int4"}, also=also, evaluate=[small])
    ran = run_program(document, tmp_path, "out")
    report = Report.model_validate(ran.report())
    print(render_table(report))
    assert [(row.engine, row.target, row.is_source) for row in report.engine_runs] == [
        ("transformers", "dense", True),
        ("transformers", "compressed-tensors", False),
    ]
    source, packed = (row.kl or 0 for row in report.engine_runs)
    assert source < 1e-3 < packed
    assert any("gptqmodel" in notice for notice in report.notices)
