"""What ONNX graphs of models that generate must reach, each printing its figure."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.exporting import Quantize, plain, run_of, simulated_logits
from fixtures.generating import greedy, logits_of, reference_greedy, run_graph
from fixtures.tiny_models import EXTRAS, make_model

from optcore.calibration.text import Texts
from optcore.export.onnx import Onnx
from optcore.onnx.generator import write_generator
from optcore.onnx.generator_fitness import FAMILIES, check_generator
from optcore.references import Calibration
from optcore.techniques import HashShare, LowRank, Palettize, Technique, TieLayers

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(1800)]
CALIBRATION = Calibration(dataset="python-stdlib", samples=64, sequence_length=256)
ROPE = {"rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {**ROPE, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
LINEAR = {"rope_parameters": {**ROPE, "rope_type": "linear"}}
BOUND = 1e-5
"""Relative error of logits: float32's own."""
CASES: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {"attention_bias": True, "mlp_bias": True}),
    ("Llama", {"rope_parameters": {**LLAMA3, "rope_type": "llama3"}}),
    ("Mistral", {"sliding_window": None, **LINEAR}),
    ("Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1, **LINEAR}),
    ("Qwen3", {}),
    ("Phi3", {"original_max_position_embeddings": 512}),
    ("Granite", LINEAR),
    ("Ernie4_5", LINEAR),
    ("HunYuanDenseV1", {}),
    ("Lfm2", EXTRAS["Lfm2"]),
    ("Phi", EXTRAS["Phi"]),
    ("Gemma", EXTRAS["Gemma"]),
    ("Gemma2", {"sliding_window": 16}),
]


def held_out(model: Path) -> "np.ndarray[Any, Any]":
    """Token windows [16, 256] of text that nothing was calibrated on."""
    windows: np.ndarray[Any, Any] = Texts(model, CALIBRATION, ()).evaluation_windows(16, 256, 1024).numpy()
    return windows.astype(np.int64)


def mean_kl(source_BTV: Any, result_BTV: Any) -> float:
    """Mean over tokens of KL(source || result), nats."""
    source, result = (torch.from_numpy(np.float64(logits)).log_softmax(-1) for logits in (source_BTV, result_BTV))
    return float((source.exp() * (source - result)).sum(-1).mean())


def size(folder: Path) -> int:
    """Bytes of the graph and its data."""
    return sum((folder / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))


def rtn(model: Path, out: Path, block: int, *more: str) -> Path:
    """What the builder rounds by itself, with inputs in full precision as in ours."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(model), "-o", str(out), "-e", "cpu"]
    options = [
        "-p",
        "int4",
        "-c",
        str(out / "cache"),
        "--extra_options",
        f"block_size={block}",
        "accuracy_level=1",
        *more,
    ]
    subprocess.run([*command, *options], check=True, capture_output=True)
    return out


def test_greedy_tokens_and_logits_are_those_of_transformers(stdlib_model: Path, tmp_path: Path) -> None:
    """float32: 4 prompts of held-out text, 64 tokens each; logits within 1e-4."""
    write_generator(run_of(stdlib_model, stdlib_model, tmp_path / "out"), Onnx())
    windows = held_out(stdlib_model)
    same = 0
    for window in windows[:4]:
        prompt = window[:32].tolist()
        ours, theirs = (
            run(folder, prompt, 64) for run, folder in ((greedy, tmp_path / "out"), (reference_greedy, stdlib_model))
        )
        assert ours == theirs
        same += len(ours)
    error = np.abs(run_graph(tmp_path / "out", windows[:4]) - logits_of(stdlib_model, windows[:4])).max()
    print(f"ONNX fp32: {same} greedy tokens equal transformers', logits differ by at most {error:.2g}")
    assert error < 1e-4


@pytest.mark.parametrize(("scheme", "block"), [("int4", 128), ("int4_g32", 32)])
def test_our_int4_is_nearer_than_the_builders_own(
    scheme: str, block: int, quantized: Quantize, stdlib_model: Path, tmp_path: Path
) -> None:
    """GPTQ's codes against both of the builder's roundings, the head in full precision in all of them."""
    checkpoint = tmp_path / "gptq"
    run = run_of(stdlib_model, stdlib_model, checkpoint, calibration=CALIBRATION)
    plain(scheme, rounding="gptq", scale_search="mse").apply(run)
    write_generator(run_of(stdlib_model, checkpoint, tmp_path / "ours"), Onnx())
    folders = {"ours, GPTQ": tmp_path / "ours"}
    for algorithm in ("default", "rtn"):
        kept = "nodes_to_exclude=/lm_head/MatMul,/model/embed_tokens/Gather"
        options = (f"algo_config={algorithm}", kept)
        folders[f"builder, {algorithm}"] = rtn(stdlib_model, tmp_path / algorithm, block, *options)
    folders["builder, as it comes"] = rtn(stdlib_model, tmp_path / "plain", block)
    windows = held_out(stdlib_model)
    source = logits_of(stdlib_model, windows)
    found = {name: mean_kl(source, run_graph(folder, windows)) for name, folder in folders.items()}
    for name, kl in found.items():
        print(f"ONNX {scheme}, {name}: KL {kl:.5f}, {size(folders[name]) / 2**20:.2f} MiB")
    assert found["ours, GPTQ"] < min(kl for name, kl in found.items() if name.startswith("builder"))


@pytest.mark.parametrize("scheme", ["int4", "int4_asym_g64", "int8_w8a16", "int8", "int8_static"])
def test_formats_cost_what_their_simulation_costs(
    scheme: str, quantized: Quantize, stdlib_model: Path, tmp_path: Path
) -> None:
    """KL against the source, in the graph and in our simulation. Rounded inputs that lie on an edge may fall to either
    side, so with those single logits differ and the sums do not."""
    write_generator(run_of(stdlib_model, quantized(scheme), tmp_path / "out"), Onnx())
    windows = held_out(stdlib_model)[:4]
    source, got = logits_of(stdlib_model, windows), run_graph(tmp_path / "out", windows)
    simulated = simulated_logits(quantized(scheme), torch.from_numpy(windows)).float().detach().numpy()
    error, graph, model = np.abs(got - simulated).max(), mean_kl(source, got), mean_kl(source, simulated)
    print(f"ONNX {scheme}: logits {error:.2g} from simulated, KL {graph:.6f}, simulated {model:.6f}")
    if scheme.startswith(("int4", "int8_w8a16")):
        assert error < 1e-4
    assert graph == pytest.approx(model, rel=0.05)


def test_halves_stay_near(quantized: Quantize, stdlib_model: Path, tmp_path: Path) -> None:
    """float16 on the CPU: plain, and with codes whose scales are rounded to it."""
    windows = held_out(stdlib_model)[:2]
    source = logits_of(stdlib_model, windows)
    for name, checkpoint in (("plain", stdlib_model), ("int4", quantized("int4"))):
        write_generator(run_of(stdlib_model, checkpoint, tmp_path / name), Onnx(plain="fp16"))
        expected = source
        if name != "plain":
            expected = simulated_logits(checkpoint, torch.from_numpy(windows)).float().detach().numpy()
        got = run_graph(tmp_path / name, windows)
        kl = mean_kl(expected, got)
        print(f"ONNX fp16 {name}: KL {kl:.2g} from float32, {size(tmp_path / name) / 2**20:.2f} MiB")
        assert got.dtype == np.float16
        assert kl < 1e-4


@pytest.mark.parametrize(("family", "more"), CASES)
def test_families_compute_what_was_simulated(
    family: str, more: dict[str, Any], stdlib_model: Path, tmp_path: Path
) -> None:
    """Random weights: plain logits and greedy tokens against transformers, 4-bit logits against our simulation."""
    model = tmp_path / "model"
    make_model(family, more, model, stdlib_model)
    assert json.loads((model / "config.json").read_text())["architectures"][0] in FAMILIES
    check_generator(model, "/target")
    plain("int4_g32").apply(run_of(model, model, tmp_path / "int4"))
    for name, checkpoint in (("plain", model), ("int4", tmp_path / "int4")):
        write_generator(run_of(model, checkpoint, tmp_path / f"{name}-out"), Onnx())
    tokens = np.random.default_rng(1).integers(3, 2000, (1, 200))
    simulated = simulated_logits(tmp_path / "int4", torch.from_numpy(tokens)).float().detach().numpy()
    expected = {"plain": logits_of(model, tokens), "int4": simulated}
    errors = {}
    for name, logits in expected.items():
        errors[name] = np.linalg.norm(run_graph(tmp_path / f"{name}-out", tokens) - logits) / np.linalg.norm(logits)
    prompt = tokens[0, :24].tolist()
    ours, theirs = greedy(tmp_path / "plain-out", prompt, 16), reference_greedy(model, prompt, 16)
    print(f"ONNX {family}: relative error {errors['plain']:.2g}, 4 bits {errors['int4']:.2g}")
    assert max(errors.values()) < BOUND
    assert ours == theirs


@pytest.mark.parametrize(
    "technique",
    [Palettize(), LowRank(), TieLayers(ties=2), HashShare()],
    ids=lambda technique: technique.technique,
)
def test_forms_of_weights_are_plain_ones_to_the_builder(
    technique: Technique, stdlib_model: Path, tmp_path: Path
) -> None:
    """Tables, factors and shared numbers lie beside plain weights, of which the graph is built."""
    run = run_of(stdlib_model, stdlib_model, tmp_path / "formed", calibration=CALIBRATION)
    technique.apply(run)
    write_generator(run_of(stdlib_model, run.out, tmp_path / "out"), Onnx())
    windows = held_out(stdlib_model)[:1]
    error = np.abs(run_graph(tmp_path / "out", windows) - logits_of(run.out, windows)).max()
    print(f"ONNX {technique.technique}: logits differ from transformers' by at most {error:.2g}")
    assert error < 1e-4
