"""What a result is reckoned to weigh, beside what the writers write."""

import json
import shutil
from pathlib import Path

import pytest
from fixtures.exporting import Quantize, plain, run_of
from pydantic import TypeAdapter

from optcore.estimate.changes import quantized as formats_of
from optcore.estimate.facts import from_folder
from optcore.estimate.stored import Model, least_bytes, result_bytes
from optcore.export import AnyExport
from optcore.sizes import weight_bytes

_EXPORT: TypeAdapter[AnyExport] = TypeAdapter(AnyExport)
_WITHIN, _BEYOND = 0.03, 0.003

CASES = [
    ("int4_g32", "compressed-tensors"),
    ("int4_g32", "awq"),
    ("int4_g32", "gptq"),
    ("int4_g32", "gguf"),
    ("int4_g32", "dense"),
    ("int4_asym_g32", "compressed-tensors"),
    ("int4_asym_g32", "awq"),
    ("fp8_dynamic", "compressed-tensors"),
    ("int8_w8a16", "gptq"),
    ("nvfp4_w4a16", "compressed-tensors"),
    ("nvfp4_w4a16", "modelopt"),
    ("nvfp4_w4a16", "gguf"),
    ("q4_k_m", "gguf"),
    ("q8_0", "gguf"),
    pytest.param("int4_g32", "onnx", marks=[pytest.mark.slow, pytest.mark.proof]),
]
FLOATS = [("int4_g32", "compressed-tensors"), ("int4_g32", "awq"), ("int4_g32", "gptq"), ("int8", "dense")]
FLOATS += [("int4_asym_g32", "compressed-tensors"), ("int2_g16", "compressed-tensors"), ("mxfp4", "compressed-tensors")]


@pytest.mark.parametrize(("scheme", "target"), CASES)
def test_a_result_weighs_what_was_reckoned(
    scheme: str, target: str, quantized: Quantize, stdlib_model: Path, tmp_path: Path
) -> None:
    asked, facts = _EXPORT.validate_python({"format": target}), from_folder(stdlib_model)
    asked.write(run_of(stdlib_model, quantized(scheme), tmp_path / "out"))
    model, written = Model(facts, formats_of(plain(scheme), scheme, facts)), weight_bytes(tmp_path / "out")
    assert result_bytes(model, asked) == pytest.approx(written, rel=_WITHIN)
    assert least_bytes(model, asked) < written * (1 + _BEYOND), "candidates are refused by it"


@pytest.fixture(scope="module")
def in_float32(stdlib_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with all values in 32 bits."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("float32") / "model"
    shutil.copytree(stdlib_model, folder)
    path = folder / "model.safetensors"
    save_file({name: tensor.float() for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    return folder


@pytest.mark.parametrize(("scheme", "target"), FLOATS)
def test_scales_are_as_wide_as_the_models_values(scheme: str, target: str, in_float32: Path, tmp_path: Path) -> None:
    asked, facts = _EXPORT.validate_python({"format": target}), from_folder(in_float32)
    plain(scheme).apply(run_of(in_float32, in_float32, tmp_path / "made"))
    asked.write(run_of(in_float32, tmp_path / "made", tmp_path / "out"))
    told = result_bytes(Model(facts, formats_of(plain(scheme), scheme, facts)), asked)
    assert told == pytest.approx(weight_bytes(tmp_path / "out"), rel=_BEYOND)


def test_more_bits_weigh_more(stdlib_model: Path) -> None:
    facts = from_folder(stdlib_model)
    target = _EXPORT.validate_python({"format": "gguf"})
    sizes = [
        result_bytes(Model(facts, formats_of(plain(scheme), scheme, facts)), target)
        for scheme in ("q2_k_m", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "q8_0")
    ]
    assert sizes == sorted(sizes)
    assert sizes[-1] < result_bytes(Model(facts), target)
