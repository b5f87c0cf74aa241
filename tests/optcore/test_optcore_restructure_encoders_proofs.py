"""What fine-tuning wins back of a classifier that lost a layer, or half of its attention heads; it prints its figures.

A BERT of four layers learns to tell packages of the standard library by their sources; accuracy on held-out pieces.
Nothing is claimed of rankings against chance: what either costs here is less than the error of 400 texts, 2.4 points.
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


SEEDS = (1, 2, 3)
MORE_steps = 80


class Source(NamedTuple):
    classifier: Path
    texts: tuple[Path, Path]
    trained_on: float
    """Accuracy after as many more steps as the pruned ones get."""


@pytest.fixture(scope="module")
def source(package_encoder: Path, package_texts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("classifier")
    run = trained_on(_training(package_texts, 240), package_encoder, package_encoder, folder, package_texts[0])
    more = trained_on(_training(package_texts, MORE_steps), run.out, run.out, folder / "more", package_texts[0])
    found = [accuracy_of(run.out, one.out, package_texts[1], one.out.with_name("measured")) for one in (run, more)]
    print(f"\nwhole {found[0]:.1%}, after {MORE_steps} steps more {found[1]:.1%}, chance {1 / len(PACKAGES):.1%}")
    return Source(run.out, package_texts, found[1])


@pytest.mark.parametrize(
    "settings",
    [{"depth": 1, "ends": True}, {"heads": {"ratio": 0.5}, "masked": True}],
    ids=["depth 4 to 3", "half of the heads"],
)
def test_fine_tuning_wins_back(settings: dict[str, Any], source: Source, tmp_path: Path) -> None:
    pruned, accuracy = _pruned(source, tmp_path / "ranked", settings, 0)
    rivals = [_pruned(source, tmp_path / str(seed), {**settings, "order": "random"}, seed) for seed in SEEDS]
    print(f"{settings} pruned: ranked {accuracy:.1%}, at random {', '.join(f'{one:.1%}' for _, one in rivals)}")
    tuned, of_tuned = _tuned(source, tmp_path / "ranked-tuned", pruned)
    _, of_rival = _tuned(source, tmp_path / "random-tuned", rivals[0][0])
    print(f"fine-tuned: ranked {of_tuned:.1%}, the first at random {of_rival:.1%}")
    _check_zeros(pruned, tuned)
    assert of_tuned >= 0.95 * source.trained_on


def _pruned(source: Source, folder: Path, settings: dict[str, Any], seed: int) -> tuple[Path, float]:
    calibration = Calibration(path=str(source.texts[0]), samples=128, sequence_length=64)
    run = run_of(source.classifier, source.classifier, folder / "out", calibration=calibration)
    run.data_files, run.seed = (source.texts[0],), seed
    Prune.model_validate(settings).apply(run)
    return run.out, accuracy_of(source.classifier, run.out, source.texts[1], folder / "measured")


def _tuned(source: Source, folder: Path, pruned: Path) -> tuple[Path, float]:
    run = trained_on(_training(source.texts, MORE_steps), source.classifier, pruned, folder, source.texts[0])
    return run.out, accuracy_of(source.classifier, run.out, source.texts[1], folder / "measured")


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


def _training(texts: tuple[Path, Path], steps: int) -> Finetune:
    data = {"kind": "labelled", "path": str(texts[0])}
    return Finetune.model_validate({**SETTINGS, "steps": steps, "data": data})
