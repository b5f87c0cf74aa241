"""Two fine-tunes of the shipped model, trained here, merged by us and by mergekit: the same checkpoints.

mergekit is an oracle, no dependency: `pip install '.[oracle]'`, or name the interpreter of another environment that
has it in MERGEKIT_PYTHON.
"""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixtures.exporting import run_of
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from optcore.calibration import stdlib
from optcore.evaluate.likelihood import mean_cross_entropy
from optcore.links import link_companions
from optcore.streaming.decoder import Decoder
from optcore.techniques.merge import Merge

_PYTHON = os.environ.get("MERGEKIT_PYTHON") or (sys.executable if importlib.util.find_spec("mergekit") else "")
pytestmark = [
    pytest.mark.proof,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        not _PYTHON, reason="no mergekit: install the extra `oracle`, or set MERGEKIT_PYTHON to an interpreter with it"
    ),
]
STEPS, BATCH, LENGTH, HELD_OUT_windows = 100, 8, 128, 64


class Parents:
    """The base and its two fine-tunes, in float32, and held-out windows [S, T] of both halves of the text."""

    def __init__(self, source: Path, folder: Path) -> None:
        torch.set_num_threads(1)
        windows = _halves(source)
        self.base, self.a, self.b = (folder / name for name in ("base", "a", "b"))
        _write(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), source, self.base)
        for path, half_ST in zip((self.a, self.b), windows, strict=True):
            _write(_fine_tuned(source, half_ST[HELD_OUT_windows:]), source, path)
        self.held_out = [half_ST[:HELD_OUT_windows] for half_ST in windows]

    def tell(self, name: str, model: Path, scratch: Path) -> None:
        """Print a model's perplexity on each half."""
        nats = [mean_cross_entropy(Decoder(model), half_ST, scratch) for half_ST in self.held_out]
        print(f"{name:<12} perplexity on the first half {math.exp(nats[0]):.4f}, on the second {math.exp(nats[1]):.4f}")


@pytest.fixture(scope="session")
def parents(stdlib_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Parents:
    made = Parents(stdlib_model, tmp_path_factory.mktemp("parents"))
    for name in ("base", "a", "b"):
        made.tell(name, getattr(made, name), tmp_path_factory.mktemp("scratch"))
    return made


def _halves(source: Path) -> list[torch.Tensor]:
    """Windows of the modules of each half of the alphabet, in a fixed random order."""
    tokenizer, generator = AutoTokenizer.from_pretrained(source), torch.Generator().manual_seed(0)
    documents = sorted(stdlib.documents("train"))
    middle, needed = len(documents) // 2, STEPS * BATCH + HELD_OUT_windows
    halves = []
    for half in (documents[:middle], documents[middle:]):
        ids = torch.tensor([token for one in half for token in tokenizer(one.text, verbose=False)["input_ids"]])
        windows_ST = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
        halves.append(windows_ST[torch.randperm(len(windows_ST), generator=generator)[:needed]])
    return halves


def _fine_tuned(source: Path, windows_ST: torch.Tensor) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0)
    for batch_BT in windows_ST.split(BATCH)[:STEPS]:
        model(batch_BT, labels=batch_BT).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def _write(model: torch.nn.Module, source: Path, folder: Path) -> None:
    folder.mkdir()
    link_companions(source, folder)
    tensors = {name: each.detach().contiguous() for name, each in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _ours(parents: Parents, first: Path, others: list[Path], out: Path, **settings: Any) -> Path:
    run = run_of(first, first, out)
    run.stage, run.models = "1-merge", tuple(others)
    named = [{"model": {"path": str(other)}, **settings.get("each", {})} for other in others]
    fields = {name: value for name, value in settings.items() if name != "each"}
    Merge.model_validate({**fields, "others": named}).apply(run)
    parents.tell(settings["method"], run.out, out / "scratch")
    return run.out


def _theirs(document: dict[str, Any], folder: Path) -> dict[str, torch.Tensor]:
    """What mergekit's own program writes; a head that it stores although it is tied is the embeddings."""
    config = folder / "merge.yaml"
    config.write_text(yaml.safe_dump({**document, "dtype": "float32"}))
    command = [_PYTHON, "-m", "mergekit.scripts.run_yaml", str(config), str(folder / "theirs"), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    tensors = {
        name: each for file in (folder / "theirs").glob("*.safetensors") for name, each in load_file(file).items()
    }
    head = tensors.pop("lm_head.weight", None)
    assert head is None or torch.equal(head, tensors["model.embed_tokens.weight"])
    return tensors


def _compare(
    name: str,
    ours: Path,
    theirs: dict[str, torch.Tensor],
    base: Path,
    edges: dict[str, torch.Tensor] | None = None,
) -> None:
    """Up to 1e-5 of the largest change that merging made to a tensor, but for elements on `edges`."""
    own, before = load_file(ours / "model.safetensors"), load_file(base / "model.safetensors")
    assert own.keys() == theirs.keys()
    worst, same, all_, left_out = 0.0, 0, 0, 0
    for key, tensor in own.items():
        difference = (tensor.double() - theirs[key].double()).abs()
        same, all_ = same + int((difference == 0).sum()), all_ + difference.numel()
        if edges:
            left_out += int((difference[edges[key]] != 0).sum())
            difference[edges[key]] = 0
        worst = max(worst, float(difference.max() / (theirs[key].double() - before[key].double()).abs().max()))
    print(f"{name:<12} {same} of {all_} elements are mergekit's to the bit; {left_out} others lie on the edge of")
    print(f"{'':<12} a trim, where equal magnitudes are chosen among; the largest difference left is {worst:.2e}")
    assert worst <= 1e-5
    assert left_out <= 1e-5 * all_


def _edges(parents: Parents, density: float) -> dict[str, torch.Tensor]:
    """Elements with a difference whose magnitude is exactly that of the last one that trimming keeps."""
    base, *both = (load_file(each / "model.safetensors") for each in (parents.base, parents.a, parents.b))
    found = {}
    for key, before in base.items():
        magnitudes = [(tensors[key] - before).abs() for tensors in both]
        place = before.numel() - round(density * before.numel()) + 1
        found[key] = torch.stack([each == each.flatten().kthvalue(place).values for each in magnitudes]).any(0)
    return found


def _entries(*models: Path, **parameters: float) -> list[dict[str, Any]]:
    return [{"model": str(model), "parameters": parameters} for model in models]


def test_linear(parents: Parents, tmp_path: Path) -> None:
    ours = _ours(parents, parents.a, [parents.b], tmp_path / "ours", method="linear")
    document = {"merge_method": "linear", "models": _entries(parents.a, parents.b, weight=1.0)}
    _compare("linear", ours, _theirs(document, tmp_path), parents.base)


def test_slerp(parents: Parents, tmp_path: Path) -> None:
    ours = _ours(parents, parents.a, [parents.b], tmp_path / "ours", method="slerp", t=0.4)
    models = [{"model": str(parents.a)}, {"model": str(parents.b)}]
    document = {"merge_method": "slerp", "base_model": str(parents.a), "models": models, "parameters": {"t": 0.4}}
    _compare("slerp", ours, _theirs(document, tmp_path), parents.base)


def test_ties(parents: Parents, tmp_path: Path) -> None:
    both, each = [parents.a, parents.b], {"density": 0.5}
    ours = _ours(parents, parents.base, both, tmp_path / "ours", method="ties", each=each)
    entries = _entries(*both, weight=1.0, density=0.5)
    document = {"merge_method": "ties", "base_model": str(parents.base), "models": entries}
    document["parameters"] = {"normalize": True}
    _compare("ties", ours, _theirs(document, tmp_path), parents.base, _edges(parents, 0.5))


def test_passthrough(parents: Parents, tmp_path: Path) -> None:
    slices = [{"layers": [0, 4]}, {"model": 1, "layers": [2, 6]}]
    ours = _ours(parents, parents.a, [parents.b], tmp_path / "ours", method="passthrough", slices=slices)
    parts = [(parents.a, [0, 4]), (parents.b, [2, 6])]
    sources = [{"sources": [{"model": str(model), "layer_range": layers}]} for model, layers in parts]
    theirs = _theirs({"merge_method": "passthrough", "slices": sources}, tmp_path)
    own = load_file(ours / "model.safetensors")
    assert own.keys() == theirs.keys()
    different = [name for name, tensor in own.items() if not torch.equal(tensor, theirs[name])]
    print(f"passthrough  {len(own) - len(different)} of {len(own)} tensors are mergekit's to the bit; not {different}")
    assert set(different) <= {"model.norm.weight"}  # it takes the norm after the layers from the last slice's model


def test_sweep(parents: Parents, tmp_path: Path) -> None:
    """What a sweep finds on calibration text, beside both parents."""
    sweep = [0.25, 0.5, 0.75, 1.0]
    run = run_of(parents.a, parents.a, tmp_path / "swept")
    run.stage, run.models = "1-merge", (parents.b,)
    Merge.model_validate({"method": "slerp", "others": [{"model": {"path": "b"}}], "sweep": sweep}).apply(run)
    found: Any = run.results["sweep"]
    print(f"sweep        t {found['best']:g} of", " ".join(f"{t:g}:{nats:.4f}" for t, nats in found["cross_entropy"]))
    parents.tell("swept", run.out, tmp_path / "scratch")
    assert dict(found["cross_entropy"])[found["best"]] == min(nats for _, nats in found["cross_entropy"])
