"""Targets besides compressed-tensors: bytes by golden words, files by decoders of their own, and by transformers."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.exporting import CALIBRATION, Quantize, described, export, plain, run_of
from fixtures.tiny_models import MakeModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from optcore.calibration.digest import weight_digest
from optcore.calibration.text import Texts
from optcore.errors import ExportMismatch, RecipeError
from optcore.events import AnyEvent, Notice
from optcore.export import Awq, Dense, Export, Fp8Block, GptqFormat
from optcore.export.awq_writer import AwqLayout, pack_awq
from optcore.export.dense_writer import DenseLayout
from optcore.export.fp8_block_writer import Fp8BlockLayout
from optcore.export.gptq_writer import GptqLayout
from optcore.export.half_scale_writer import pack_words
from optcore.export.layout_writer import EXACT, Bound, compare
from optcore.export.raw_reader import RawFiles, e2m1, e4m3
from optcore.schemes import PRESETS
from optcore.streaming.quantized import QuantizedCheckpoint

CASES: list[tuple[Export, str]] = [
    (Fp8Block(), "fp8_block"),
    *((Awq(), scheme) for scheme in sorted(Awq.schemes)),
    *((GptqFormat(), scheme) for scheme in sorted(GptqFormat.schemes)),
    *((Dense(), scheme) for scheme in ("nf4", "llm_int8", "int2_asym_g16", "nvfp4", "mxfp8")),
]


@pytest.mark.proof
@pytest.mark.parametrize(("target", "scheme"), CASES, ids=[f"{t.format}-{s}" for t, s in CASES])  # type: ignore[attr-defined]
def test_what_is_written_decodes_to_what_was_simulated(
    target: Export, scheme: str, quantized: Quantize, stdlib_model: Path, tmp_path: Path
) -> None:
    """`write` compares every weight; here its decoder is called once more, and held to a bound of our own.

    Packed formats store the weight exactly; a dense one stores it in the model's bfloat16, whose unit roundoff is 2^-8.
    """
    checkpoint = quantized(scheme)
    files = export(target, checkpoint, tmp_path / "out", stdlib_model)
    state = QuantizedCheckpoint(checkpoint)
    layouts = {"fp8": Fp8BlockLayout, "awq": AwqLayout, "gptq": GptqLayout}
    kind = layouts.get(target.format)  # type: ignore[attr-defined]
    layout = kind(state) if kind else DenseLayout(state, checkpoint)
    bound = Bound(relative=2.0**-8) if isinstance(target, Dense) else EXACT
    worst = 0.0
    for name, linear in state.description.linears.items():
        weight = state.weight(name)
        assert weight_digest(weight) == linear.digest, name  # what the pass computed with
        expected = weight.double().numpy()
        difference = np.abs(layout.decode(files, name) - expected)
        assert (difference <= bound.relative * np.abs(expected) + bound.absolute).all(), name
        worst = max(worst, float(difference.max()))
    print(f"{target.title}, {scheme}: {len(state.description.modules)} layers, largest difference {worst:.3g}")


def test_golden_words() -> None:
    """Words that ONNX Runtime GenAI decoded as these codes; FP4 bytes that compressed-tensors printed."""
    eight = torch.arange(8)[None]
    assert pack_awq(eight).view(torch.uint32).item() == 0x75316420
    assert pack_words(eight, 4).view(torch.uint32).item() == 0x76543210
    assert pack_words(torch.full((1, 8), 7), 4).view(torch.uint32).item() == 0x77777777
    assert pack_words(torch.tensor([[0, 127, 128, 255]]), 8).view(torch.uint32).item() == 0xFF807F00
    octets = np.frombuffer(bytes.fromhex("008080224466ae77"), np.uint8)
    values = e2m1(np.stack([octets & 15, octets >> 4], -1).reshape(-1))
    assert values.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 4, 4, -4, -1, 6, 6]


def test_fp8_octets_decode_as_torch_does() -> None:
    octets = torch.arange(256, dtype=torch.uint8)
    expected = octets.view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(e4m3(octets.numpy()), expected, equal_nan=True)


def test_symmetric_zero_points_are_the_published_constants(
    quantized: Quantize, stdlib_model: Path, tmp_path: Path
) -> None:
    name = "model.layers.0.self_attn.q_proj"
    gptq = export(GptqFormat(), quantized("int4"), tmp_path / "gptq", stdlib_model)
    assert set(gptq.bits(f"{name}.qzeros").view(np.uint32).reshape(-1).tolist()) == {0x77777777}
    assert gptq.bits(f"{name}.g_idx").tolist() == [k // 128 for k in range(256)]
    assert gptq.shape(f"{name}.qweight") == (32, 256)
    awq = export(Awq(), quantized("int4"), tmp_path / "awq", stdlib_model)
    assert set(awq.bits(f"{name}.qzeros").view(np.uint32).reshape(-1).tolist()) == {0x88888888}
    assert (awq.shape(f"{name}.qweight"), awq.shape(f"{name}.scales")) == ((256, 32), (2, 256))
    assert {files.dtype(f"{name}.scales") for files in (awq, gptq)} == {"F16"}


@pytest.mark.proof
def test_transformers_loads_fp8_blocks(quantized: Quantize, stdlib_model: Path, tmp_path: Path) -> None:
    """No key missing, none unexpected; on the CPU it decodes the weights, and computes what the dense export does."""
    checkpoint = quantized("fp8_block")
    for target, folder in ((Fp8Block(), "fp8"), (Dense(), "dense")):
        export(target, checkpoint, tmp_path / folder, stdlib_model)
    tokens_BT = Texts(stdlib_model, CALIBRATION, ()).evaluation_windows(2, 64, 1024)
    logits = {}
    for folder in ("fp8", "dense"):
        model, info = AutoModelForCausalLM.from_pretrained(tmp_path / folder, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.no_grad():
            logits[folder] = model(tokens_BT).logits.float()
    noise = ((logits["fp8"] - logits["dense"]).norm() / logits["dense"].norm()).item()
    print(f"fp8: 0 missing, 0 unexpected, relative difference of the logits {noise:.2e}")
    assert noise < 1e-2


def test_gptq_names_what_engines_fuse(quantized: Quantize, stdlib_model: Path, tmp_path: Path) -> None:
    """vLLM looks up `qkv_proj`, which no checkpoint has."""
    checkpoint = quantized("int4", ignore=["re:model\\.layers\\.0\\.self_attn\\.[qkv]_proj"])
    export(GptqFormat(), checkpoint, tmp_path, stdlib_model)
    rules = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["dynamic"]
    left = {name for name in ("q", "k", "v", "qkv", "o") if _is_left(rules, f"model.layers.0.self_attn.{name}_proj")}
    assert left == {"q", "k", "v", "qkv"}
    assert not _is_left(rules, "model.layers.1.self_attn.qkv_proj")


def _is_left(rules: dict[str, object], name: str) -> bool:
    """As vLLM reads `dynamic`."""
    return any(re.match(rule.removeprefix("-:"), name) for rule in rules if rule.startswith("-:"))


@pytest.mark.parametrize("target", [Awq(), GptqFormat(), Fp8Block()], ids=lambda target: target.format)
def test_engines_are_told_what_was_left_alone(target: Export, tiny_model: MakeModel, tmp_path: Path) -> None:
    """A router is a linear layer to some engines, and would be looked up among the packed ones."""
    scheme = "fp8_block" if isinstance(target, Fp8Block) else "int4_g64"
    model = tiny_model("Qwen3Moe")
    plain(scheme).apply(run_of(model, model, tmp_path / "checkpoint"))
    files = export(target, tmp_path / "checkpoint", tmp_path / "out", model)
    told = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    routers = [f"model.layers.{index}.mlp.gate" for index in range(2)]
    if isinstance(target, GptqFormat):
        assert list(told["dynamic"]) == [rf"-:^model\.layers\.{index}\.mlp\.gate$" for index in range(2)]
    else:
        assert told["modules_to_not_convert"] == ["lm_head", *routers]
    assert all(f"{router}.weight" in files.names for router in routers)
    experts = {name for name in files.names if ".experts." in name and name.endswith((".qweight", ".weight"))}
    assert len(experts) == 2 * 4 * 3


def test_scales_that_float16_lacks_are_rounded_within_the_bound(
    quantized: Quantize, stdlib_model: Path, tmp_path: Path
) -> None:
    """A group of tiny weights: its bfloat16 scale is below what float16 holds without loss."""
    checkpoint, name = _scaled(quantized("int4"), tmp_path, 2.0**-14)
    files = export(GptqFormat(), checkpoint, tmp_path / "out", stdlib_model)
    layout = GptqLayout(QuantizedCheckpoint(checkpoint))
    assert layout.bound(name) != EXACT
    difference = np.abs(layout.decode(files, name) - layout.state.weight(name).numpy()).max()
    print(f"largest difference {difference:.3g}")
    assert 0 < difference <= 8 * 2.0**-25


def test_scales_that_float16_cannot_hold_are_refused(quantized: Quantize, stdlib_model: Path, tmp_path: Path) -> None:
    checkpoint, name = _scaled(quantized("int4"), tmp_path, 2.0**24)
    with pytest.raises(RecipeError, match=f"{name} has a scale of .* float16 ends at 65504"):
        export(Awq(), checkpoint, tmp_path / "out", stdlib_model)


def _scaled(source: Path, folder: Path, factor: float) -> tuple[Path, str]:
    """A copy of a quantized checkpoint with one layer's scales multiplied, described as the pass would have."""
    copy, name = _spoilt(source, folder, factor)
    description, weight = described(copy), QuantizedCheckpoint(copy).weight(name)
    first, *rest = description.layers
    linear = first.linears[name].model_copy(update={"digest": weight_digest(weight)})
    first = first.model_copy(update={"linears": {**first.linears, name: linear}})
    description.model_copy(update={"layers": (first, *rest)}).save(copy)
    return copy, name


def _spoilt(source: Path, folder: Path, factor: float) -> tuple[Path, str]:
    """A copy of a quantized checkpoint with one layer's scales multiplied, and its description as it was."""
    copy = shutil.copytree(source, folder / "scaled")
    path, name = copy / "quantized-00000.safetensors", "model.layers.0.mlp.down_proj"
    tensors = load_file(path)
    tensors[f"{name}.weight_scale"] *= factor
    path.unlink()
    save_file(tensors, path)
    return copy, name


def test_a_checkpoint_that_is_not_what_was_simulated_is_refused(
    quantized: Quantize, stdlib_model: Path, tmp_path: Path
) -> None:
    """Packed bytes that decode to the stored weight are no proof when the stored weight is another one."""
    checkpoint, name = _spoilt(quantized("int4"), tmp_path, 2.0)
    with pytest.raises(ExportMismatch, match=f"{name} in the checkpoint is not the weight that was simulated"):
        export(GptqFormat(), checkpoint, tmp_path / "out", stdlib_model)


def test_a_wrong_byte_is_found(quantized: Quantize, stdlib_model: Path, tmp_path: Path) -> None:
    checkpoint = quantized("int4")
    export(Awq(), checkpoint, tmp_path / "out", stdlib_model)
    path, name = tmp_path / "out" / "model.safetensors", "model.layers.3.mlp.up_proj"
    tensors = load_file(path)
    tensors[f"{name}.qweight"][5, 7] ^= 1 << 13
    save_file(tensors, path)
    layout = AwqLayout(QuantizedCheckpoint(checkpoint))
    decoded = layout.decode(RawFiles(tmp_path / "out"), name)
    with pytest.raises(ExportMismatch, match=rf"{name} decodes to .* 1 of {256 * 768} values differ"):
        compare(name, decoded, layout.state.weight(name), layout.bound(name))


def test_a_bound_is_a_bound() -> None:
    weight = torch.tensor([[1.0, -2.0]])
    compare("x", np.array([[1.01, -2.02]], np.float32), weight, Bound(0.011))
    with pytest.raises(ExportMismatch, match="1 of 2 values differ"):
        compare("x", np.array([[1.01, -2.02]], np.float32), weight, Bound(0.0, 0.0101))
    with pytest.raises(ExportMismatch, match="nan"):
        compare("x", np.array([[np.nan, -2.0]], np.float32), weight, Bound(1.0))
    with pytest.raises(ExportMismatch, match="shape"):
        compare("x", np.ones((2, 1), np.float32), weight, EXACT)


def test_the_dense_export_says_what_it_leaves_out(stdlib_model: Path, tmp_path: Path) -> None:
    plain("llm_int8", kv_cache="int4").apply(run_of(stdlib_model, stdlib_model, tmp_path / "checkpoint"))
    events: list[AnyEvent] = []
    Dense().write(run_of(stdlib_model, tmp_path / "checkpoint", tmp_path / "out", events))
    (notice,) = (event.message for event in events if isinstance(event, Notice))
    assert notice == "this target holds rounded weights only; activations are and the KV cache is not rounded"
    source, written = RawFiles(stdlib_model), RawFiles(tmp_path / "out")
    assert written.names == source.names
    assert (tmp_path / "out" / "config.json").read_text() == (stdlib_model / "config.json").read_text()
    assert all(written.dtype(name) == source.dtype(name) for name in source.names)


def test_every_format_has_a_target_that_holds_it() -> None:
    assert set(PRESETS) <= Dense.schemes
