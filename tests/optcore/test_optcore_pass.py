"""The quantization pass: one read and one write, resumed after a kill at any layer, several formats at once."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixtures.exporting import described, export, run_of
from fixtures.tiny_models import EXTRAS, SIZES, MakeModel
from fixtures.whole_runs import walk
from safetensors.torch import load_file, save_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from optcore.algorithms.codes import fake_quantize
from optcore.calibration.digest import weight_digest
from optcore.coverage import coverage
from optcore.errors import BadCheckpoint, OutOfDisk, RecipeError
from optcore.events import Progress, RunFailed, RunFinished, parse_event
from optcore.export import CompressedTensors
from optcore.quantization import also_folder
from optcore.references import Calibration
from optcore.run import Run
from optcore.streaming.quantized import QuantizedCheckpoint
from optcore.streaming.reader import TensorReader
from optcore.techniques import Ptq
from optcore.techniques.options import Gptq

pytestmark = pytest.mark.timeout(600)
CALIBRATION = Calibration(dataset="python-stdlib", samples=4, sequence_length=64)


def quantized(model: Path, folder: Path, technique: Ptq) -> tuple[Path, Run]:
    """Apply a technique as its stage would; the checkpoint and the stage's context."""
    torch.set_num_threads(1)
    run = run_of(model, model, folder / "checkpoint", calibration=CALIBRATION)
    technique.apply(run)
    return run.out, run


def exported(checkpoint: Path, model: Path, folder: Path) -> Path:
    export(CompressedTensors(), checkpoint, folder / "export", model)
    return folder / "export"


@pytest.mark.parametrize("family", ["Llama", "Qwen3Moe", "Gemma2"])
def test_a_checkpoint_is_read_once_and_written_once(family: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model(family)
    checkpoint, run = quantized(model, tmp_path, Ptq(scheme="int4_g32"))
    reader = TensorReader(model)
    assert run.results["bytes_read"] == sum(reader.nbytes(name) for name in reader.names)
    out = exported(checkpoint, model, tmp_path)
    files = sorted(out.glob("*.safetensors"))
    assert len(files) == len(described(checkpoint).files)
    assert all(file.samefile(checkpoint / name) for file, name in zip(files, described(checkpoint).files, strict=True))
    assert run.results["bytes_written"] == sum(file.stat().st_size for file in files)


def test_what_is_not_quantized_is_written_as_it_was(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("Qwen3")
    checkpoint, _ = quantized(model, tmp_path, Ptq(scheme="int8", smoothing="none"))
    source = load_file(model / "model.safetensors")
    plain = dict(QuantizedCheckpoint(checkpoint).plain_tensors())
    linears = {f"{name}.weight" for name in described(checkpoint).linears}
    assert plain.keys() == source.keys() - linears
    assert all(torch.equal(plain[name], source[name]) and plain[name].dtype == source[name].dtype for name in plain)


@pytest.mark.parametrize("scheme", ["nvfp4", "int4_asym_g32", "fp8"])
def test_stored_codes_are_the_simulated_weights(scheme: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("Llama")
    checkpoint, _ = quantized(model, tmp_path, Ptq(scheme=scheme))
    stored = QuantizedCheckpoint(checkpoint)
    for name, linear in described(checkpoint).linears.items():
        weight = stored.weight(name)
        assert weight_digest(weight) == linear.digest
        _, scales = stored.codes(name)
        assert torch.equal(fake_quantize(weight, scales, stored.scheme(name).weights), weight)  # on the grid


def test_fused_siblings_share_their_scales(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Engines keep one number for q/k/v, for gate/up, and for the inputs of all experts of a layer."""
    checkpoint, _ = quantized(tiny_model("Mixtral"), tmp_path, Ptq(scheme="nvfp4"))
    tensors = {key: value for file in checkpoint.glob("quantized-*") for key, value in load_file(file).items()}
    for layer in ("model.layers.0", "model.layers.1"):
        attention = [f"{layer}.self_attn.{name}_proj" for name in "qkv"]
        experts = [f"{layer}.block_sparse_moe.experts.{number}" for number in range(4)]
        for kind in ("weight_global_scale", "input_global_scale"):
            assert len({tensors[f"{name}.{kind}"].item() for name in attention}) == 1
            for expert in experts:
                assert tensors[f"{expert}.w1.{kind}"] == tensors[f"{expert}.w3.{kind}"]
        for projection in ("w1", "w2"):
            assert len({tensors[f"{expert}.{projection}.input_global_scale"].item() for expert in experts}) == 1


def test_experts_without_tokens_are_reported(stdlib_model: Path, tmp_path: Path) -> None:
    """A router along one direction chooses the ends of it: the experts between are rounded without a measurement."""
    model = tmp_path / "model"
    _eight_experts(model, stdlib_model)
    checkpoint, _ = quantized(model, tmp_path, Ptq(scheme="int4_g32"))
    linears = described(checkpoint).linears
    tokens = {name: linear.tokens for name, linear in linears.items() if ".experts." in name}
    starved = {name for name, count in tokens.items() if count == 0}
    between = {name for name in tokens if any(f".experts.{number}." in name for number in (2, 3, 4, 5))}
    assert starved == between
    assert all("token" in linears[name].fallback for name in starved)
    assert not any(linears[name].fallback for name in tokens.keys() - starved)


def _eight_experts(folder: Path, tokenizer_from: Path) -> None:
    torch.manual_seed(3)
    config = Qwen3MoeConfig(**{**SIZES, **EXTRAS["Qwen3Moe"], "num_experts": 8})
    model = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    pull = torch.tensor([2, 1.5, 0.1, 0.05, -0.05, -0.1, -1.5, -2])
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):
            parameter.data = (pull[:, None] * torch.randn(1, parameter.shape[1])).to(parameter.dtype)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_from / name, folder / name)


def test_several_formats_of_one_pass_equal_those_made_alone(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("Qwen3")
    together = Ptq(scheme="nvfp4", also=("int4_g32", "fp8_dynamic"), propagate="original")
    checkpoint, run = quantized(model, tmp_path / "together", together)
    reader = TensorReader(model)
    assert run.results["bytes_read"] == sum(reader.nbytes(name) for name in reader.names)
    for scheme in ("nvfp4", "int4_g32", "fp8_dynamic"):
        alone, _ = quantized(model, tmp_path / scheme, Ptq(scheme=scheme, propagate="original"))
        ours = checkpoint if scheme == "nvfp4" else also_folder(checkpoint, scheme)
        assert described(ours) == described(alone)
        for name in described(ours).files:
            assert (ours / name).read_bytes() == (alone / name).read_bytes(), name


@pytest.mark.parametrize(
    "technique",
    [
        Ptq(scheme="nvfp4", propagate="original", smoothing="none"),
        Ptq(scheme="int4_g32", propagate="quantized"),
        Ptq(scheme="int4_g32", gptq=Gptq(asymmetry=0.25), kv_cache="fp8"),
    ],
    ids=["original", "quantized", "asymmetric"],
)
def test_a_pass_goes_on_behind_the_last_finished_layer(
    technique: Ptq, tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("Llama")
    whole, _ = quantized(model, tmp_path / "whole", technique)
    _stop_at_layer(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        quantized(model, tmp_path / "cut", technique)
    first = tmp_path / "cut" / "checkpoint" / "quantized-00000.safetensors"
    written = first.stat().st_mtime_ns
    monkeypatch.undo()
    again, _ = quantized(model, tmp_path / "cut", technique)
    assert first.stat().st_mtime_ns == written
    assert described(again) == described(whole)
    for name in described(whole).files:
        assert (again / name).read_bytes() == (whole / name).read_bytes(), name


def _stop_at_layer(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from optcore.calibration.journal import Journal

    write = Journal.write

    def stopped(self: Journal, at: int, *rest: Any) -> None:
        if at == index:
            raise KeyboardInterrupt
        write(self, at, *rest)

    monkeypatch.setattr(Journal, "write", stopped)


@pytest.fixture(scope="module")
def digest(stdlib_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the recipe of a run that will be killed ends in when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    _write_recipe(folder, stdlib_model)
    return _walk(folder, "undisturbed")


def _write_recipe(folder: Path, model: Path) -> None:
    document = {
        "model": {"path": str(model)},
        "calibration": {"dataset": "python-stdlib", "samples": 4, "sequence_length": 64},
        "chain": [{"technique": "ptq", "scheme": "int4_g32"}],
        "evaluate": [{"evaluator": "fidelity", "samples": 2, "sequence_length": 64}],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))


@pytest.mark.parametrize("layers", [1, 4])
def test_kill_9_at_a_layer_then_run_again(layers: int, digest: str, stdlib_model: Path, tmp_path: Path) -> None:
    """The process group dies between two layers; the next run keeps what was there and ends in the same digest."""
    _write_recipe(tmp_path, stdlib_model)
    process = _start(tmp_path, "killed")
    with process:
        assert process.stdout
        for line in process.stdout:
            event = parse_event(line)
            if isinstance(event, Progress) and event.phase == "calibrating" and event.done == layers:
                os.killpg(process.pid, signal.SIGKILL)
                break
    (part,) = (tmp_path / "killed-work" / "stages").glob("*.part")
    kept = {path.name: path.stat().st_mtime_ns for path in (part / "files").glob("quantized-*.safetensors")}
    assert len(kept) >= layers
    assert _walk(tmp_path, "killed") == digest
    (stage,) = (
        folder
        for folder in (tmp_path / "killed-work" / "stages").glob("*/files")
        if (folder / "quantization.json").exists()
    )
    finished = sorted(kept)[:layers]
    assert {name: (stage / name).stat().st_mtime_ns for name in finished} == {name: kept[name] for name in finished}


def _start(folder: Path, name: str) -> "subprocess.Popen[bytes]":
    command = [
        sys.executable,
        "-m",
        "optcore",
        "run",
        str(folder / "recipe.yaml"),
        "--work",
        str(folder / f"{name}-work"),
    ]
    return subprocess.Popen([*command, "--out", str(folder / name)], stdout=subprocess.PIPE, start_new_session=True)


def _walk(folder: Path, name: str) -> str:
    """The same run in this process."""
    last = walk(folder / "recipe.yaml", folder / name, folder / f"{name}-work")[-1]
    assert isinstance(last, RunFinished), last
    return last.digest


Damage = Callable[[dict[str, torch.Tensor]], None]


def _nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")


def _damaged(source: Path, folder: Path, damage: Damage) -> Path:
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_weights_that_are_not_finite_name_the_tensor(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = _damaged(tiny_model("Llama"), tmp_path / "model", _nan)
    with pytest.raises(BadCheckpoint, match=r"model\.layers\.1\.mlp\.up_proj"):
        quantized(model, tmp_path, Ptq(scheme="int4_g32"))


@pytest.mark.parametrize("scheme", ["int4_g32", "nvfp4", "mxfp4", "fp8", "int8", "nf4", "int4_asym_g32"])
def test_zero_channels_stay_zero(scheme: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    """Dead outputs, dead inputs and a weight that is all zero: no division by zero, no value from nowhere."""

    def zero(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.q_proj.weight"][5] = 0
        tensors["model.layers.0.mlp.down_proj.weight"][:, :64] = 0
        tensors["model.layers.1.mlp.gate_proj.weight"].zero_()

    model = _damaged(tiny_model("Llama"), tmp_path / "model", zero)
    checkpoint, _ = quantized(model, tmp_path, Ptq(scheme=scheme))
    stored = QuantizedCheckpoint(checkpoint)
    assert all(stored.weight(name).isfinite().all() for name in described(checkpoint).linears)
    assert not stored.weight("model.layers.0.self_attn.q_proj")[5].any()
    assert not stored.weight("model.layers.1.mlp.gate_proj").any()


def test_too_little_disk_is_said_before_any_layer(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("optcore.calibration.quantize.shutil.disk_usage", lambda path: free)
    with pytest.raises(OutOfDisk, match="are free"):
        quantized(tiny_model("Llama"), tmp_path, Ptq(scheme="int4_g32"))
    assert not list(tmp_path.rglob("quantized-*"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ignore": ("model.layers.0.mlp.downproj",)}, "matches no linear layer"),
        ({"ignore": ("re:.*q_proj",)}, "engines fuse into one matrix"),
        ({"ignore": ("re:model\\.layers\\.1\\..*q_proj",)}, "engines fuse into one matrix"),
        ({"overrides": ({"modules": "re:.*experts\\.1\\.", "scheme": "fp8"},)}, "run as one kernel"),
    ],
    ids=["misspelt", "half-of-a-group", "half-of-a-later-group", "one-expert"],
)
def test_patterns_that_cannot_be_meant_are_refused(
    changes: dict[str, Any], said: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    technique = Ptq.model_validate({"scheme": "int4_g32", **changes})
    with pytest.raises(RecipeError, match=said):
        quantized(tiny_model("Qwen3Moe"), tmp_path, technique)
    assert not list(tmp_path.rglob("quantized-*"))


def test_overrides_give_single_layers_another_format(tiny_model: MakeModel, tmp_path: Path) -> None:
    overrides = [
        {"modules": "re:model\\.layers\\.0\\.", "scheme": None},
        {"modules": "re:.*down_proj", "scheme": "fp8_dynamic"},
    ]
    model = tiny_model("Llama")
    checkpoint, _ = quantized(model, tmp_path, Ptq.model_validate({"scheme": "int4_g32", "overrides": overrides}))
    formats = {name: linear.scheme for name, linear in described(checkpoint).linears.items()}
    assert not any(name.startswith("model.layers.0.") for name in formats)
    assert formats["model.layers.1.mlp.down_proj"] == "fp8_dynamic"
    assert formats["model.layers.1.mlp.up_proj"] == "int4_g32"
    out = exported(checkpoint, model, tmp_path)
    rows = {row.name: row for row in coverage(described(checkpoint), model, out).classes}
    assert rows["model.layers.*.mlp.down_proj"].formats == "none in 0; fp8_dynamic in 1"
    assert rows["model.layers.*.mlp.up_proj"].layers == {"none": "0", "int4_g32": "1"}
    assert rows["model.layers.*.input_layernorm"].formats == "as it was"
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    assert {group["format"] for group in config["config_groups"].values()} == {"pack-quantized", "float-quantized"}


def test_a_failed_run_names_the_stage(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = _damaged(tiny_model("Llama"), tmp_path / "model", _nan)
    document = {
        "model": {"path": str(model)},
        "calibration": {"dataset": "python-stdlib", "samples": 4, "sequence_length": 64},
        "chain": [{"technique": "ptq", "scheme": "int4_g32"}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    with _start(tmp_path, "out") as process:
        assert process.stdout
        last = parse_event(process.stdout.read().splitlines()[-1])
    assert isinstance(last, RunFailed)
    assert (last.failure.code, last.failure.stage) == ("checkpoint_bad", "1-ptq")
