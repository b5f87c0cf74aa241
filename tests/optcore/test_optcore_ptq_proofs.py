"""The acceptance lines of post-training quantization, each printing its figure: `python3 dev.py proofs-ptq`."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixtures.exporting import run_of, simulated_logits
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.gptq_update import compare_gptq_updates
from optcore.calibration.text import Texts
from optcore.evaluate.fidelity_stream import compare
from optcore.export import CompressedTensors
from optcore.export.compressed_tensors_decoder import CompressedDecoder
from optcore.plan import check
from optcore.recipe import parse_recipe
from optcore.references import Calibration
from optcore.run import Run
from optcore.schemes import KV_CACHE_PRESETS, PRESETS, SchemeName
from optcore.sizes import size_measurements
from optcore.streaming.simulate import Simulation
from optcore.techniques import Ptq

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]
SMALL = {"dataset": "python-stdlib", "samples": 4, "sequence_length": 128}
BF16_NOISE = 5.5e-3
"""Relative: what storing a model's weights in bfloat16 does to its logits (measured in `engines.md`)."""
LARGEST_CACHE_KL = {
    "fp8": 0.0017,
    "fp8_head": 0.0017,
    "int8": 0.00026,
    "int4": 0.011,
    "nvfp4": 0.016,
    "nvfp4_affine": 0.015,
}
"""Half as much again as the proof printed when it was written; a rotated cache was never worse."""


def run_recipe(document: dict[str, Any], folder: Path) -> tuple[Path, Path, float]:
    """Walk a YAML recipe's stages in this process: the exported folder, the quantized checkpoint, and the mean KL."""
    torch.set_num_threads(1)
    recipe = parse_recipe(yaml.safe_dump(document))
    check(recipe)
    model = Path(str(recipe.model.path))

    def stage(name: str, checkpoint: Path) -> Run:
        return run_of(model, checkpoint, folder / name, calibration=recipe.calibration)

    recipe.chain[0].apply(stage("1-ptq", model))
    recipe.target.write(stage("2-export", folder / "1-ptq"))
    found, _ = compare(stage("3-evaluate", folder / "1-ptq"), 4, 128)
    return folder / "2-export", folder / "1-ptq", found["result"].mean_kl


@pytest.mark.parametrize("scheme", sorted(PRESETS))
def test_every_scheme_runs_from_yaml_and_loads_back(scheme: str, stdlib_model: Path, tmp_path: Path) -> None:
    """Acceptance 1."""
    held = scheme in CompressedTensors.schemes
    document = {
        "model": {"path": str(stdlib_model)},
        "calibration": SMALL,
        "chain": [{"technique": "ptq", "scheme": scheme}],
        "target": {"format": "compressed-tensors" if held else "dense"},
    }
    out, checkpoint, kl = run_recipe(document, tmp_path)
    bits = size_measurements(stdlib_model, out)[1].result
    tokens = Texts(stdlib_model, Calibration(**SMALL), ()).evaluation_windows(2, 128, 1024)
    is_unpacked_in_bf16 = held and scheme.startswith(("nvfp4", "mxfp"))  # whatever it is loaded as
    dtype = torch.bfloat16 if is_unpacked_in_bf16 else torch.float32
    model, info = AutoModelForCausalLM.from_pretrained(out, dtype=dtype, output_loading_info=True)
    with torch.no_grad():
        model(tokens[:1, :1])  # compressed-tensors unpacks at the first call
        torch.nn.Module.float(model)
        if is_unpacked_in_bf16:
            decoder = CompressedDecoder(out)
            for name in Simulation(checkpoint).description.modules:
                model.get_submodule(name).weight = torch.nn.Parameter(decoder.weight(name))
        loaded = model(tokens).logits
    expected = simulated_logits(checkpoint, tokens)
    error = float((loaded - expected).norm() / expected.norm())
    missing, unexpected = len(info["missing_keys"]), len(info["unexpected_keys"])
    print(
        f"{scheme}: {bits:.2f} bits/weight, KL {kl:.5f}; transformers: {missing} missing, {unexpected} unexpected, "
        f"logits {error:.1e} from the simulated model"
    )
    assert (missing, unexpected) == (0, 0)
    if held or PRESETS[scheme].activations is None:  # a dense checkpoint does not round its inputs
        assert error < BF16_NOISE


def _kl_of_cache(name: str | None, rotate: bool, model: Path, folder: Path) -> float:
    held = name is None or name in CompressedTensors.kv_caches
    cache = {"kv_cache": name, "kv_rotate": rotate} if name else {}
    document = {
        "model": {"path": str(model)},
        "calibration": SMALL,
        "chain": [{"technique": "ptq", "scheme": "int8_w8a16", "smoothing": "none", **cache}],
        "target": {"format": "compressed-tensors" if held else "dense"},
    }
    return run_recipe(document, folder)[-1]


@pytest.fixture(scope="module")
def kl_without_cache(stdlib_model: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """What the weights in 8 bits cost by themselves."""
    return _kl_of_cache(None, False, stdlib_model, tmp_path_factory.mktemp("no-cache"))


@pytest.mark.parametrize("name", sorted(KV_CACHE_PRESETS))
@pytest.mark.parametrize("rotate", [False, True], ids=["plain", "rotated"])
def test_every_kv_cache_runs_from_yaml(
    name: str, rotate: bool, kl_without_cache: float, stdlib_model: Path, tmp_path: Path
) -> None:
    """Acceptance 1, the cache: its error is measured alone, beside weights in 8 bits."""
    kl = _kl_of_cache(name, rotate, stdlib_model, tmp_path)
    print(f"KV cache {name}, {'rotated' if rotate else 'plain'}: KL {kl:.5f}, {kl_without_cache:.5f} without it")
    assert kl_without_cache < kl < LARGEST_CACHE_KL[name]


class Measured:
    """Techniques applied to the shipped model as their stage would, measured on the same held-out text."""

    def __init__(self, model: Path, folder: Path, samples: int, length: int = 512) -> None:
        torch.set_num_threads(2)
        self.model, self.folder = model, folder
        self.calibration = Calibration(dataset="python-stdlib", samples=samples, sequence_length=length)
        self._count = 0

    def run(self, out: Path, checkpoint: Path | None = None) -> Run:
        return run_of(self.model, checkpoint or self.model, out, calibration=self.calibration)

    def apply(self, technique: Ptq) -> tuple[Path, float]:
        """The checkpoint, and the seconds that the technique took."""
        self._count += 1
        out = self.folder / str(self._count)
        started = time.perf_counter()
        technique.apply(self.run(out))
        return out, time.perf_counter() - started

    def kl(self, technique: Ptq, windows: int = 64) -> tuple[float, float]:
        """Mean KL of the technique, and of plain rounding to nearest at maximum scales in the same run."""
        checkpoint, _ = self.apply(technique)
        found, _ = compare(self.run(self.folder / f"{self._count}-measured", checkpoint), windows, 512)
        return found["result"].mean_kl, found.get("baseline", found["result"]).mean_kl


@pytest.mark.parametrize(
    ("technique", "samples", "goal", "stretch"),
    [
        (Ptq(scheme="int4_g32"), 256, 0.16, 0.123),
        (Ptq(scheme="nvfp4_w4a16"), 64, 0.20, 0.14),
        (Ptq(scheme="mxfp4_w4a16"), 128, 0.16, 0.12),
        (Ptq(scheme="nvfp4"), 64, 0.65, 0.55),
        (Ptq(scheme="nvfp4", activation_search=True), 64, 0.65, 0.55),
    ],
    ids=["int4_g32", "nvfp4_w4a16", "mxfp4_w4a16", "nvfp4", "nvfp4-search"],
)
def test_divergence_over_plain_rounding(
    technique: Ptq,
    samples: int,
    goal: float,
    stretch: float,
    stdlib_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Acceptance 2, by the default settings, on `samples` windows of 512 tokens.

    Plain MXFP4 is rounded by the rule of the OCP specification (6.3); compared with compressed-tensors' kinder rule,
    which is our own baseline, the ratio is printed too.
    """
    measured = Measured(stdlib_model, tmp_path, samples)
    kl, plain = measured.kl(technique)
    name = technique.scheme + (", activation scales searched" if technique.activation_search else "")
    if technique.scheme.startswith("mxfp4"):
        print(f"{name}: {kl / plain:.3f} of plain rounding at compressed-tensors' exponents, {plain:.5f}")
        plain = _by_the_ocp_rule(measured, technique.scheme, monkeypatch)
    print(f"{name}: KL {kl:.5f} over {plain:.5f} of plain rounding: {kl / plain:.3f} (goal {goal}, stretch {stretch})")
    assert kl / plain <= goal


def _by_the_ocp_rule(measured: Measured, scheme: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """KL of rounding to nearest at the exponents floor(log2(amax)) - 2."""

    def floor_of_log2(amax: torch.Tensor, reach: float) -> torch.Tensor:
        return (amax.float().log2().floor() - 2 + 127).clamp(0, 254).to(torch.uint8)

    with monkeypatch.context() as patched:
        patched.setattr("optcore.algorithms.storage.encode_e8m0", floor_of_log2)
        return measured.kl(Ptq(scheme=scheme, rounding="nearest", scale_search="max", smoothing="none"))[0]


def _rss(model: Path, folder: Path) -> float:
    """Peak resident memory in MiB of a process that quantizes a model, activations kept small.

    Linux's high-water mark of the program: `getrusage` would count what the parent held when it started it.
    """
    code = (
        "import sys, torch; from pathlib import Path; torch.set_num_threads(1)\n"
        "from optcore.run import Run; from optcore.references import Calibration; from optcore.techniques import Ptq\n"
        "model, out = Path(sys.argv[1]), Path(sys.argv[2]); out.mkdir(parents=True)\n"
        "data = Calibration(dataset='python-stdlib', samples=4, sequence_length=64)\n"
        "run = Run('p', model, model, out, out / 's', data, (), lambda e: None, out.with_name('journal'))\n"
        "Ptq(scheme='int4').apply(run)\n"
        "print(float(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]) / 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), str(folder / "out")],
        stdout=subprocess.PIPE,
        check=True,
        cwd=os.getcwd(),
    )
    return float(done.stdout.split()[-1])


def _deep(layers: int, folder: Path, tokenizer_from: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=4,
        vocab_size=2048,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer_from / name).read_bytes())
    return folder


def test_peak_memory_does_not_follow_depth(stdlib_model: Path, tmp_path: Path) -> None:
    """Acceptance 5: four times as many layers of equal width."""
    shallow = _rss(_deep(4, tmp_path / "shallow", stdlib_model), tmp_path / "a")
    deep = _rss(_deep(16, tmp_path / "deep", stdlib_model), tmp_path / "b")
    print(f"peak RSS: 4 layers {shallow:.0f} MiB, 16 layers {deep:.0f} MiB: {deep / shallow - 1:+.1%}")
    assert deep < 1.15 * shallow


def test_one_read_and_one_write_of_the_checkpoint(stdlib_model: Path, tmp_path: Path) -> None:
    """Acceptance 5: counted where bytes are asked for and given away, over quantization and export."""
    measured = Measured(stdlib_model, tmp_path, 4, 128)
    run = measured.run(tmp_path / "checkpoint")
    Ptq(scheme="nvfp4").apply(run)
    CompressedTensors().write(measured.run(tmp_path / "export", tmp_path / "checkpoint"))
    source = (stdlib_model / "model.safetensors").stat().st_size
    files = list((tmp_path / "export").glob("*.safetensors"))
    result = sum(path.stat().st_size for path in files)
    read, written = int(str(run.results["bytes_read"])), int(str(run.results["bytes_written"]))
    print(f"read {read / source:.4f} of the source's bytes (the rest is its header), wrote {written / result:.4f}")
    assert 0.99 < read / source <= 1
    assert written == result
    assert all(path.stat().st_nlink > 1 for path in files)  # the export links what the pass wrote


def test_five_formats_cost_little_more_than_one(stdlib_model: Path, tmp_path: Path) -> None:
    """Acceptance 5: the same measurement of the original model serves all of them.

    On the calibration set that a recipe has by itself; with few tokens the formats' own searches are most of the time.
    """
    usual = Calibration(dataset="python-stdlib")
    measured = Measured(stdlib_model, tmp_path, usual.samples, usual.sequence_length)
    one = measured.apply(Ptq(scheme="nvfp4", propagate="original"))[1]
    also: tuple[SchemeName, ...] = ("fp8_dynamic", "int8", "int4", "mxfp4")
    five = measured.apply(Ptq(scheme="nvfp4", also=also, propagate="original"))[1]
    print(f"{usual.samples} windows: one format {one:.1f} s, five {five:.1f} s: {five / one:.2f}x")
    assert five / one <= 1.8


def test_the_gptq_update_is_twice_as_fast_as_the_column_loop() -> None:
    """Acceptance 6."""
    for timing in compare_gptq_updates():
        print(timing)
        assert timing.speedup >= 2
        assert abs(timing.loss_ratio - 1) < 1e-3
