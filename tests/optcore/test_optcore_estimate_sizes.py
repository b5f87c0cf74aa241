"""What a result is reckoned to weigh, beside what the writers write."""

from pathlib import Path

import pytest
from fixtures.exporting import Quantize, export, plain
from pydantic import TypeAdapter

from optcore.estimate.changes import quantized as formats_of
from optcore.estimate.facts import from_folder
from optcore.estimate.stored import Model, result_bytes
from optcore.export import AnyExport
from optcore.sizes import weight_bytes

_EXPORT: TypeAdapter[AnyExport] = TypeAdapter(AnyExport)
_WITHIN = 0.03

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
]


@pytest.mark.parametrize(("scheme", "target"), CASES)
def test_a_result_weighs_what_was_reckoned(
    scheme: str, target: str, quantized: Quantize, stdlib_model: Path, tmp_path: Path
) -> None:
    asked, checkpoint = _EXPORT.validate_python({"format": target}), quantized(scheme)
    export(asked, checkpoint, tmp_path / "out", stdlib_model)
    facts = from_folder(stdlib_model)
    told = result_bytes(Model(facts, formats_of(plain(scheme), scheme, facts)), asked)
    assert told == pytest.approx(weight_bytes(tmp_path / "out") if target != "gguf" else _gguf(tmp_path), rel=_WITHIN)


def _gguf(folder: Path) -> int:
    return (folder / "out" / "model.gguf").stat().st_size


def test_more_bits_weigh_more(stdlib_model: Path) -> None:
    facts = from_folder(stdlib_model)
    target = _EXPORT.validate_python({"format": "gguf"})
    sizes = [
        result_bytes(Model(facts, formats_of(plain(scheme), scheme, facts)), target)
        for scheme in ("q2_k_m", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "q8_0")
    ]
    assert sizes == sorted(sizes)
    assert sizes[-1] < result_bytes(Model(facts), target)
