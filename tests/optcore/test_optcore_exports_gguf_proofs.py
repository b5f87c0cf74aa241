"""GGUF's proofs: llama.cpp computes the logits that were simulated, of every format that is written today."""

from pathlib import Path

import pytest
from fixtures.exporting import Quantize
from fixtures.llama import gap_to_simulation

from optcore.schemes import GGML_FORMATS

pytest.importorskip("llama_cpp", reason="the peer that runs the file")

FORMATS = {
    "int4": "Q4_0",
    "int4_g64": "Q4_0",
    "int4_g32": "Q4_0",
    "int4_asym": "Q4_1",
    "int4_asym_g64": "Q4_1",
    "int4_asym_g32": "Q4_1",
    "int8_w8a16": "Q8_0",
    "mxfp4_w4a16": "MXFP4",
    "nvfp4_w4a16": "NVFP4",
    **{name: name.upper() for name in sorted(GGML_FORMATS)},
    "q4_k_m": "Q4_K",
    "q2_k_m": "Q3_K",
}


@pytest.mark.proof
@pytest.mark.parametrize("scheme", FORMATS)
def test_llama_computes_what_was_simulated(scheme: str, quantized: Quantize, tmp_path: Path) -> None:
    """Unpacked, within float32; zero points become minimums in float16, which lack up to four of their bits."""
    gap = gap_to_simulation(quantized(scheme), FORMATS[scheme], tmp_path)
    assert gap <= (0.02 if "asym" in scheme else 1e-3)
