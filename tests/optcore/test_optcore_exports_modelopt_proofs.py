"""Bytes against Model Optimizer's own export, where both are told the same statistics.

The tool measures with its own kernels, so it is given what our pass measured: largest magnitudes of weights, inputs,
keys and values. All that is left is its arithmetic and its layout.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from fixtures.exporting import Quantize, export, plain, run_of
from safetensors.torch import load_file, save_file

from benchmarks.peers.venvs import make_venv, peer_python
from optcore.export import Modelopt
from optcore.export.modelopt_groups import fused_group
from optcore.export.modelopt_multiplier import amax_of
from optcore.export.raw_reader import Array, RawFiles, e2m1
from optcore.streaming.quantized import QuantizedCheckpoint

ROOT = Path(__file__).parents[2]
TOOL = ROOT / ".lathe" / "peers" / "modelopt" / "bin" / "python"
pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(1800)]
SUPERSET = {"group_size", "has_zero_point", "pre_quant_scale", "config_groups"}
"""What we tell in `config.json` too, where the tool leaves it to `hf_quant_config.json`."""


@pytest.fixture(scope="module", autouse=True)
def tool() -> None:
    """Model Optimizer, in an environment of its own that the first run makes."""
    assert (peer_python("modelopt") or make_venv("modelopt")) == TOOL


class Both(NamedTuple):
    """The same model in our export and in the tool's."""

    ours: RawFiles
    theirs: RawFiles

    def same(self, name: str) -> bool:
        """Whether a tensor has one type, one shape and the same bytes in both."""
        return all(
            one == other
            for one, other in (
                (self.ours.dtype(name), self.theirs.dtype(name)),
                (self.ours.shape(name), self.theirs.shape(name)),
                (self.ours.bits(name).tobytes(), self.theirs.bits(name).tobytes()),
            )
        )

    def documents(self, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """A JSON file of both."""
        one, other = (json.loads((files.folder / name).read_text()) for files in self)
        return one, other


def both(quantized: Path, model: Path, folder: Path, configurations: str) -> Both:
    """Export a quantized checkpoint, and have the tool export the model it was made of."""
    ours = export(Modelopt(), quantized, folder / "ours", model)
    save_file(statistics(QuantizedCheckpoint(quantized)), folder / "statistics.safetensors")
    program = ROOT / "tests" / "fixtures" / "modelopt_export.py"
    command = [TOOL, program, model, folder / "theirs", configurations, folder / "statistics.safetensors"]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=280)
    return Both(ours, RawFiles(folder / "theirs"))


def statistics(state: QuantizedCheckpoint) -> dict[str, torch.Tensor]:
    """Largest magnitudes by the name of the quantizer that the tool keeps them in."""
    found = {}
    for name in state.description.modules:
        scheme, (_, scales) = state.scheme(name), state.codes(name)
        quantizer, top = f"{name}.weight_quantizer", {"int": 7.0, "float": 448.0}[scheme.weights.type]
        if scheme.name == "int4_fp8_static":  # INT4, and then FP8 of what that decodes to
            found[f"{quantizer}.0"] = largest(scales.scale, top)
            found[f"{quantizer}.1"] = state.weight(name).abs().amax()
        elif scales.global_scale is None:
            found[quantizer] = largest(scales.scale, top)
        if (scale := state.input_scale(name)) is not None:
            measured = torch.tensor(state.description.linears[name].input_amax)
            is_divisor = scheme.weights.strategy == "tensor_group"
            found[f"{name}.input_quantizer"] = measured if is_divisor else largest(scale, 448.0)
    for name in state.description.attentions:
        for suffix, tensor in state.kv_tensors(name).items():
            kind, _, what = suffix.partition("_")
            quantizer = f"{name}.{kind}_bmm_quantizer"
            if what == "bias":
                found[f"{quantizer}.bias"] = tensor.float()
            elif what == "scale":
                found[quantizer] = largest(tensor, 448.0)
            else:  # of keys and values nothing but the divisor is kept
                found[quantizer] = torch.tensor(amax_of(tensor.item(), tuple))
    return found


def largest(scale: torch.Tensor, top: float) -> torch.Tensor:
    """The magnitude whose quotient by `top` is this scale to the last bit, float32, shaped like it."""
    near = scale.float() * top
    choices = (near, torch.nextafter(near, near * 2), torch.nextafter(near, near / 2))
    for other in choices[1:]:
        near = torch.where(near / top == scale.float(), near, other)
    return near


@pytest.fixture(scope="module")
def float32_model(tmp_path_factory: pytest.TempPathFactory, stdlib_model: Path) -> Path:
    """The shipped model with weights as a training in float32 leaves them: with bits that bfloat16 has not, and a few
    outputs of nothing but zeros.

    Weights of 8 bits make two differences that these do not. The tool divides bfloat16 weights by FP8's one scale in
    bfloat16, and so rounds twice what we round once. And thousands of them lie in the very middle of two values of
    NVFP4, where the last bit of a quotient decides.
    """
    folder = tmp_path_factory.mktemp("float32") / "model"
    shutil.copytree(stdlib_model, folder)
    random = torch.Generator().manual_seed(8)
    tensors = {
        name: tensor.float() * (1 + 2**-9 * torch.rand(tensor.shape, generator=random))
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    tensors["model.layers.2.mlp.up_proj.weight"][5:9] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    return folder


@pytest.mark.parametrize(("kv_cache", "caches"), [(None, ""), ("fp8", ",FP8_KV_CFG")])
def test_every_byte_of_fp8_is_the_tools(kv_cache: str | None, caches: str, float32_model: Path, tmp_path: Path) -> None:
    plain("fp8", kv_cache=kv_cache).apply(run_of(float32_model, float32_model, tmp_path / "checkpoint"))
    pair = both(tmp_path / "checkpoint", float32_model, tmp_path, f"FP8_DEFAULT_CFG{caches}")
    same_bytes(pair, f"fp8 of float32 weights, cache {kv_cache}")


def test_fp8_of_bfloat16_weights_is_never_farther_than_the_tools(
    quantized: Quantize, stdlib_model: Path, tmp_path: Path
) -> None:
    """Its quotients are bfloat16 before they are FP8: some weights go to the second nearest value. Scales are equal."""
    pair = both(quantized("fp8"), stdlib_model, tmp_path, "FP8_DEFAULT_CFG")
    assert pair.ours.names == pair.theirs.names
    differing = sorted(name for name in pair.ours.names if not pair.same(name))
    source, moved, total = load_file(stdlib_model / "model.safetensors"), 0, 0
    for name in differing:
        assert pair.ours.dtype(name) == pair.theirs.dtype(name) == "F8_E4M3"
        weight, scale = source[name].double().numpy(), float(pair.ours.floats(f"{name}_scale"))
        mine, other = (np.abs(weight - files.floats(name).astype(np.float64) * scale) for files in pair)
        assert (mine <= other).all(), name
        moved, total = moved + int((mine < other).sum()), total + mine.size
    equal = f"{len(pair.ours.names) - len(differing)} of {len(pair.ours.names)} tensors equal"
    print(f"fp8 of bfloat16 weights, against Model Optimizer: {equal}; {moved} of {total} codes nearer, none farther")
    assert 0 < moved < total / 20
    same_descriptions(pair)


NVFP4 = [
    ("nvfp4", "nvfp4", "NVFP4_DEFAULT_CFG,NVFP4_KV_CFG"),
    ("nvfp4_w4a16", "nvfp4_affine", "W4A16_NVFP4_CFG,NVFP4_AFFINE_KV_CFG"),
]


@pytest.mark.parametrize(("scheme", "kv_cache", "configurations"), NVFP4)
def test_every_byte_of_nvfp4_is_the_tools(
    scheme: str, kv_cache: str, configurations: str, float32_model: Path, tmp_path: Path
) -> None:
    plain(scheme, kv_cache=kv_cache).apply(run_of(float32_model, float32_model, tmp_path / "checkpoint"))
    pair = both(tmp_path / "checkpoint", float32_model, tmp_path, configurations)
    same_bytes(pair, f"{scheme} of float32 weights, cache {kv_cache}")


CASES = [
    ("fp8_dynamic", "FP8_PER_CHANNEL_PER_TOKEN_CFG"),
    ("fp8_block", "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG"),
    ("int4", "INT4_AWQ_CFG"),
    ("int4_fp8_static", "W4A8_AWQ_BETA_CFG"),
]


@pytest.mark.parametrize(("scheme", "configurations"), CASES)
def test_every_byte_is_the_tools(
    scheme: str, configurations: str, quantized: Quantize, stdlib_model: Path, tmp_path: Path
) -> None:
    same_bytes(both(quantized(scheme), stdlib_model, tmp_path, configurations), scheme)


def same_bytes(pair: Both, title: str) -> None:
    """The same tensors, and the same descriptions."""
    assert pair.ours.names == pair.theirs.names
    differing = [name for name in sorted(pair.ours.names) if not pair.same(name)]
    total = len(pair.ours.names)
    print(f"{title}, against Model Optimizer: {total - len(differing)} of {total} tensors equal")
    assert differing == []
    same_descriptions(pair)


def same_descriptions(pair: Both) -> None:
    """Key by key: the tool lists the embedding among what it leaves, and we tell some facts in both files."""
    mine, other = pair.documents("hf_quant_config.json")
    assert mine["producer"] == other["producer"]
    assert mine["quantization"].pop("exclude_modules") == ["lm_head"]
    assert other["quantization"].pop("exclude_modules") == ["lm_head", "model.embed_tokens"]
    assert mine["quantization"] == other["quantization"]
    flat, their_flat = (document["quantization_config"] for document in pair.documents("config.json"))
    assert flat.pop("ignore") == ["lm_head"]
    assert their_flat.pop("ignore") == ["lm_head", "model.embed_tokens"]
    assert set(flat) - set(their_flat) <= SUPERSET
    assert {key: value for key, value in flat.items() if key in their_flat} == their_flat


@pytest.mark.parametrize(("scheme", "kv_cache", "configurations"), NVFP4)
def test_nvfp4_of_bfloat16_weights_is_the_tools_but_for_exact_ties(
    scheme: str, kv_cache: str, configurations: str, quantized: Quantize, stdlib_model: Path, tmp_path: Path
) -> None:
    """Every scale is the same byte, and so is every code but of weights that are as far from one value as from the
    other.

    The step is scale * amax / 2688. The tool multiplies the scale by the rounded amax / 2688, and compressed-tensors,
    whose bytes our codes are, divides it by the rounded 2688 / amax: no one arithmetic gives the codes of both.
    """
    pair = both(quantized(scheme, kv_cache=kv_cache), stdlib_model, tmp_path, configurations)
    assert pair.ours.names == pair.theirs.names
    modules = sorted(n.removesuffix(".weight_scale_2") for n in pair.ours.names if n.endswith(".weight_scale_2"))
    assert len(modules) == 42
    differing = {name for name in pair.ours.names if not pair.same(name)}
    assert differing <= {f"{module}.weight" for module in modules}
    source = {name: tensor.double().numpy() for name, tensor in load_file(stdlib_model / "model.safetensors").items()}
    found = [_tied(pair, source, module) for module in modules]
    ties, total = (sum(counts) for counts in zip(*found, strict=True))
    of = f"{len(pair.ours.names) - len(differing)} of {len(pair.ours.names)} tensors equal"
    print(
        f"{scheme} of bfloat16 weights, cache {kv_cache}, against Model Optimizer: {of}, the others but for ties; "
        f"{ties} of {total} codes differ, all of them exact ties"
    )
    assert ties < total / 500
    same_descriptions(pair)


def _tied(pair: Both, source: dict[str, Array], module: str) -> tuple[int, int]:
    """Codes that differ, each for a weight in the very middle of two neighbours; and all codes.

    In float64 nothing here is rounded: weights and amax have 8 bits, scales 4, middles 3.
    """
    mine, other = (_fp4(files.bits(f"{module}.weight")) for files in pair)
    group = fused_group(module, {name.removesuffix(".weight") for name in source})
    amax = max(np.abs(source[f"{name}.weight"]).max() for name in group)
    scale = np.repeat(pair.ours.floats(f"{module}.weight_scale").astype(np.float64), 16, axis=1)
    differs = mine != other
    middle = (mine.astype(np.float64) + other)[differs] / 2
    assert np.array_equal(source[f"{module}.weight"][differs] * 2688, middle * scale[differs] * amax), module
    steps = np.abs(mine - other)[differs]
    assert np.isin(steps, (0.5, 1, 2)).all()
    return int(differs.sum()), differs.size


def _fp4(octets: Array) -> Array:
    return e2m1(np.stack([octets & 15, octets >> 4], -1).reshape(len(octets), -1))
