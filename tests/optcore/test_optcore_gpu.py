"""The streaming engine on a CUDA device against the same on the CPU."""

from pathlib import Path

import pytest
import torch

from optcore.evaluate import Fidelity
from optcore.export import CompressedTensors
from optcore.references import Calibration
from optcore.run import Run
from optcore.schemes import PRESETS
from optcore.streaming.decoder import Decoder
from optcore.techniques import Ptq

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
CALIBRATION = Calibration(dataset="python-stdlib", samples=4, sequence_length=64)


def test_logits_are_the_cpus_within_bfloat16(stdlib_model: Path) -> None:
    tokens_BT = torch.randint(0, 2048, (2, 64), generator=torch.Generator().manual_seed(4))
    on_gpu = _logits(Decoder(stdlib_model), tokens_BT).float().cpu()
    on_cpu = _logits(Decoder(stdlib_model, torch.device("cpu")), tokens_BT)
    assert ((on_gpu - on_cpu).norm() / on_cpu.norm()).item() < 0.02


@pytest.mark.parametrize("scheme", PRESETS)
def test_every_format_is_made_and_measured(scheme: str, stdlib_model: Path, tmp_path: Path) -> None:
    checkpoint, export = tmp_path / "checkpoint", tmp_path / "export"
    checkpoint.mkdir()
    export.mkdir()
    Ptq(scheme=scheme, kv_cache="fp8").apply(_run(stdlib_model, stdlib_model, checkpoint))
    CompressedTensors().write(_run(stdlib_model, checkpoint, export))
    rows = Fidelity(samples=4, sequence_length=128).measure(_run(stdlib_model, checkpoint, export))
    kl = next(row.result for row in rows if row.name == "mean_kl")
    assert kl is not None
    assert 0 < kl < 0.5


def _logits(decoder: Decoder, tokens_BT: torch.Tensor) -> torch.Tensor:
    state = decoder.embed(tokens_BT)
    for index in range(len(decoder)):
        with decoder.layer(index) as layer:
            state = decoder.forward(index, layer, state)
    return decoder.logits(state)


def _run(model: Path, checkpoint: Path, out: Path) -> Run:
    return Run("stage", checkpoint, model, out, out.parent / "scratch", CALIBRATION, (), lambda event: None)
