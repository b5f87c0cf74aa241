"""Training on a CUDA device: bfloat16 products, float32 weights, and codes that the CPU reads alike."""

from pathlib import Path

import pytest
import torch
from fixtures.exporting import Quantize
from fixtures.tiny_models import MakeModel
from fixtures.training import training_run, validations

from optcore.techniques import Qad
from optcore.training.isolation import keeps_documents_apart
from optcore.training.student import Student

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


@pytest.mark.parametrize(("scheme", "scope", "rate"), [("int3_g32", "full", 3e-4), ("nvfp4", "scales", 1e-2)])
def test_qad_wins_back_on_a_gpu(
    scheme: str, scope: str, rate: float, quantized: Quantize, stdlib_model: Path, tmp_path: Path
) -> None:
    technique = Qad.model_validate(
        {"steps": 20, "sequence_length": 128, "scope": scope, "learning_rate": rate, "validation": {"every": 5}}
    )
    run = training_run(technique, stdlib_model, quantized(scheme), tmp_path)
    technique.apply(run)
    measured = validations(run, "kl")
    print(f"{scheme}, {scope}: KL {measured[0]:.5f} -> {min(measured):.5f}")
    assert min(measured) < (0.7 if scope == "full" else 0.98) * measured[0]
    on_cpu = Student(run.out, torch.device("cpu"))
    on_cpu.simulate("freeze")
    assert on_cpu.linears


@pytest.mark.parametrize(
    ("family", "is_apart"), [("Llama", True), ("Gemma2", True), ("Qwen3Moe", True), ("Lfm2", False)]
)
def test_what_is_masked_gets_no_gradient_at_all(family: str, is_apart: bool, tiny_model: MakeModel) -> None:
    """In the device's kernels and in bfloat16 too: documents are packed, or not, by that."""
    assert keeps_documents_apart(tiny_model(family)) is is_apart
