"""How often a layer's quantization would make the CPU wait for a GPU: a bound for each way, so that none creeps in."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.synchronisations import Synchronisations
from fixtures.tiny_models import make_model

from optcore.references import Calibration
from optcore.streaming.experts import routed
from optcore.techniques import Ptq

ON_THE_CPU = ("streaming/lookahead.py:finite", "streaming/reader.py:", "importance.py:", "calibration/text.py:")
"""What looks at bytes that came from the disk and never were on a GPU."""
LAYERS = 2


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({"scheme": "int8", "rounding": "nearest", "smoothing": "none", "scale_search": "max"}, 8),
        ({"scheme": "fp8", "rounding": "nearest", "smoothing": "none", "scale_search": "max", "kv_cache": "fp8"}, 14),
        ({"scheme": "int4", "rounding": "gptq", "smoothing": "none", "scale_search": "max"}, 33),
        ({"scheme": "int4", "rounding": "nearest", "smoothing": "awq", "scale_search": "max"}, 46),
    ],
    ids=["nearest", "kv-cache", "gptq", "awq"],
)
def test_a_layer_waits_for_the_gpu_no_more_often_than_this(
    settings: Mapping[str, object], bound: int, stdlib_model: Path, tmp_path: Path
) -> None:
    """From the difference between two depths: what is done once for the model does not count.

    One wait of each layer is for its error, which people watch, behind those for its weights' digests.
    """
    counts = []
    for depth in (1, LAYERS):
        folder = tmp_path / f"{depth} layers"
        model = make_model("Llama", {"num_hidden_layers": depth}, folder, stdlib_model)
        calibration = Calibration(dataset="python-stdlib", samples=2, sequence_length=16)
        run = run_of(model, model, tmp_path / str(depth), calibration=calibration)
        with Synchronisations() as counted:
            Ptq.model_validate(settings).apply(run)
        counts.append({site: n for site, n in counted.sites.items() if not site.startswith(ON_THE_CPU)})
    shallow, deep = counts
    of_a_layer = {site: (n - shallow.get(site, 0)) / (LAYERS - 1) for site, n in deep.items()}
    print({site: n for site, n in of_a_layer.items() if n})
    assert sum(of_a_layer.values()) <= bound, of_a_layer


def test_the_count_sees_values_sizes_masks_and_moves() -> None:
    x = torch.arange(4.0)
    with Synchronisations() as counted:
        float(x.sum()), x.nonzero(), x[x > 1], x.cpu(), torch.equal(x, x), x + 1, x[torch.tensor([1])]
    assert counted.sites.total() == 5


@pytest.mark.parametrize("experts", [1, 3, 64])
def test_experts_are_told_apart_as_by_a_search_for_each(experts: int) -> None:
    generator = torch.Generator().manual_seed(experts)
    for tokens in (0, 1, 63):
        chosen_Tk = torch.randint(0, experts, (tokens, 4), generator=generator)
        with Synchronisations() as counted:
            found = routed(chosen_Tk, experts)
        assert counted.sites.total() == 1
        for number, (token, place) in enumerate(found):
            expected = torch.where(chosen_Tk == number)
            assert torch.equal(token, expected[0])
            assert torch.equal(place, expected[1])
