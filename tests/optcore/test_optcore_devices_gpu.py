"""Rounding on GPUs, all that there are: as good as on one, and where the layer is."""

import pytest
import torch

from optcore.calibration.devices import computing_devices
from optcore.calibration.rounding import Fused, round_weights
from optcore.calibration.statistics import InputStatistics
from optcore.schemes import PRESETS
from optcore.techniques import Ptq

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def _experts(count: int, device: torch.device) -> list[Fused]:
    groups = []
    for number in range(count):
        random = torch.Generator().manual_seed(number)
        x_TK = torch.randn(512, 256, generator=random) @ torch.randn(256, 256, generator=random)
        weights = {f"{number}.{name}": torch.randn(384, 256, generator=random) for name in ("gate", "up")}
        found = InputStatistics(512, x_TK.abs().amax(0), x_TK.mT @ x_TK / 512)
        groups.append(Fused(weights, PRESETS["int4_g64"], found).to(device))
    return groups


@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
def test_all_gpus_round_as_well_as_the_cpu(rounding: str) -> None:
    home, *others = computing_devices(torch.device("cuda"))
    assert len(others) == torch.cuda.device_count() - 1
    technique = Ptq.model_validate({"scheme": "int4_g64", "rounding": rounding})
    cpu = torch.device("cpu")
    expected = round_weights(_experts(5, cpu), technique, torch.bfloat16, [cpu])
    made = round_weights(_experts(5, home), technique, torch.bfloat16, [home, *others])
    assert made.keys() == expected.keys()
    for path, one in made.items():
        assert one.weight_NK.device == home
        assert one.loss == pytest.approx(expected[path].loss, rel=0.02)
        if rounding == "nearest":
            assert float((one.weight_NK.cpu() != expected[path].weight_NK).float().mean()) < 0.001
