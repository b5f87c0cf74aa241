"""What fine-tuning wins back of a classifier that lost a layer, or half of its attention heads; it prints its figures.

A BERT of four layers learns to tell packages of the standard library by their sources; accuracy on held-out pieces.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.package_texts import PACKAGES, SETTINGS, accuracy_of, trained_on
from safetensors.torch import load_file

from optcore.references import Calibration
from optcore.sparsity import load_sparsity
from optcore.techniques import Finetune, Prune

pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(3600)]


class Source(NamedTuple):
    classifier: Path
    texts: tuple[Path, Path]
    accuracy: float


@pytest.fixture(scope="module")
def source(package_encoder: Path, package_texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("classifier")
    run = trained_on(_training(package_texts, 240), package_encoder, package_encoder, folder, package_texts[0])
    accuracy = accuracy_of(run.out, run.out, package_texts[1], folder / "measured")
    print(f"\nwhole {accuracy:.1%}, chance {1 / len(PACKAGES):.1%}")
    return Source(run.out, package_texts, accuracy)


@pytest.mark.parametrize(
    "settings",
    [{"depth": 1, "ends": True}, {"heads": {"ratio": 0.5}, "masked": True}],
    ids=["depth 4 to 3", "half of the heads"],
)
def test_fine_tuning_wins_back(settings: dict[str, Any], source: Source, tmp_path: Path) -> None:
    found = {}
    for order in ("influence", "random"):
        pruned = run_of(source.classifier, source.classifier, tmp_path / order, calibration=_calibration(source))
        Prune.model_validate({**settings, "order": order}).apply(pruned)
        tuned = trained_on(
            _training(source.texts, 80), source.classifier, pruned.out, tmp_path / f"{order}-tuned", source.texts[0]
        )
        found[order] = [
            accuracy_of(source.classifier, run.out, source.texts[1], tmp_path / f"{order}-{name}-measured")
            for name, run in (("pruned", pruned), ("tuned", tuned))
        ]
        print(f"{settings} {order:<9}: pruned {found[order][0]:.1%}, fine-tuned {found[order][1]:.1%}")
        _check_zeros(pruned.out, tuned.out)
    assert found["influence"][1] >= 0.95 * source.accuracy
    assert found["influence"][0] > found["random"][0]


def _check_zeros(pruned: Path, tuned: Path) -> None:
    described = load_sparsity(tuned)
    if described is None:
        assert load_sparsity(pruned) is None
        return
    before, after = (load_file(folder / "model.safetensors") for folder in (pruned, tuned))
    filled = [int(((before[name] == 0) & (after[name] != 0)).sum()) for name in before if ".attention." in name]
    print(f"zeros of attention filled by training: {sum(filled)}; share of zeros {described.share:.1%}")
    assert not any(filled)
    assert any(not torch.equal(before[name], after[name]) for name in described.tensors)


def _calibration(source: Source) -> Calibration:
    return Calibration(path=str(source.texts[0]), samples=128, sequence_length=64)


def _training(texts: tuple[Path, Path], steps: int) -> Finetune:
    data = {"kind": "labelled", "path": str(texts[0])}
    return Finetune.model_validate({**SETTINGS, "steps": steps, "data": data})
