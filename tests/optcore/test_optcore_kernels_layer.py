"""What a layer's quantization launches, and how much memory it hands to kernels: exact, so that one more shows."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from fixtures.exporting import run_of
from fixtures.tiny_models import make_model

from optcore.kernels.counting import Counts, counting
from optcore.kernels.dispatch import SWITCH
from optcore.references import Calibration
from optcore.techniques import Ptq

PLAIN = {"smoothing": "none", "scale_search": "max"}


@pytest.mark.parametrize(
    ("settings", "launches", "megabytes"),
    [
        ({"scheme": "int4_g32", "rounding": "nearest", **PLAIN}, {"choose_group_scales": 7, "round": 7}, 1.88),
        # Seven linears of four shapes: a shape's blocks of 128 columns are rounded together.
        (
            {"scheme": "int4_g32", "rounding": "gptq", "gptq": {"sweeps": 0, "asymmetry": 0}, **PLAIN},
            {"add_products": 4, "choose_group_scales": 7, "round_columns": 8},
            4.105,
        ),
        ({"scheme": "nvfp4", "rounding": "nearest", **PLAIN}, {"choose_group_scales": 7, "fake_quantize": 7}, 0.898),
    ],
    ids=["nearest", "gptq", "nvfp4"],
)
def test_a_layer_launches_these_kernels(
    settings: Mapping[str, object],
    launches: Mapping[str, int],
    megabytes: float,
    stdlib_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(SWITCH, "triton")
    shallow, deep = (_counted(settings, depth, stdlib_model, tmp_path / str(depth)) for depth in (1, 2))
    assert deep.launches - shallow.launches == Counter(launches)
    assert (deep.bytes - shallow.bytes).total() / 1e6 == pytest.approx(megabytes, rel=1e-3)


def _counted(settings: Mapping[str, object], depth: int, tokenizer: Path, folder: Path) -> Counts:
    model = make_model("Llama", {"num_hidden_layers": depth}, folder / "model", tokenizer)
    calibration = Calibration(dataset="python-stdlib", samples=2, sequence_length=16)
    run = run_of(model, model, folder, calibration=calibration)
    with counting() as counts:
        Ptq.model_validate(settings).apply(run)
    return counts
