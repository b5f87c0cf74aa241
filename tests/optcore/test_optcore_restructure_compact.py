"""The compact target: bits that come back exactly, bytes that add up, and folders that lie."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from optcore.compact import Compacted, load_compact
from optcore.conditional import load_conditional
from optcore.engine import optimize
from optcore.errors import BadCheckpoint, ExportMismatch, FolderUnusable
from optcore.export import Compact
from optcore.export.compact_decoder import CompactCheckpoint, decode
from optcore.recipe import recipe_from
from optcore.report import Report
from optcore.streaming.tensor_file import TensorFile
from optcore.techniques import AttentionWindow, HashShare, LowRank, Palettize, Sparsify
from optcore.techniques.base import Technique

TABLE = "model.layers.0.mlp.down_proj.weight"
CASES: dict[str, Technique] = {
    "palette": Palettize(bits=3, sensitivity="none", group=100, ignore=("re:.*layers.[1-5]",)),
    "buckets": HashShare(weighting="none"),
    "factors": LowRank(method="svd", keep=0.5, ignore=("re:.*layers.[1-5]",)),
    "sparse": Sparsify(method="magnitude", ratio=0.7, ignore=("re:.*layers.[1-5]",)),
}


@pytest.fixture(scope="module")
def compact(stdlib_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """The dense checkpoint of a technique, and the compact one."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(name: str) -> tuple[Path, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            CASES[name].apply(run_of(stdlib_model, stdlib_model, folder / "dense"))
            Compact().write(run_of(stdlib_model, folder / "dense", folder / "compact"))
            made[name] = folder / "dense", folder / "compact"
        return made[name]

    return make


@pytest.mark.parametrize("name", CASES)
def test_it_decodes_to_the_same_bits_and_logits(
    name: str, compact: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    dense, folder = compact(name)
    decode(folder, tmp_path / "plain")
    before, after = load_file(dense / "model.safetensors"), load_file(tmp_path / "plain" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8)) for key in before)
    models = [AutoModelForCausalLM.from_pretrained(each) for each in (dense, tmp_path / "plain")]
    logits = [model(torch.arange(100, 140)[None]).logits for model in models]
    assert torch.equal(*logits)


@pytest.mark.parametrize("name", CASES)
def test_what_the_document_counts_is_what_lies_on_disk(
    name: str, compact: Callable[[str], tuple[Path, Path]], stdlib_model: Path
) -> None:
    _, folder = compact(name)
    path = folder / "compact.safetensors"
    with path.open("rb") as file:
        on_disk = path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
    document = load_compact(folder)
    assert document.data_bytes == on_disk == sum(tensor.bytes for tensor in document.tensors.values())
    assert document.bits_per_weight == 8 * on_disk / document.parameters
    assert document.data_bytes < (stdlib_model / "model.safetensors").stat().st_size
    assert name in {tensor.stored_as.form for tensor in document.tensors.values()}
    with safe_open(path, "pt") as file:  # others can open it: numbers lie at multiples of their width
        assert sum(file.get_tensor(key).nbytes for key in file.keys()) == on_disk  # noqa: SIM118


def test_three_bits_are_three_bits(compact: Callable[[str], tuple[Path, Path]]) -> None:
    tensor = load_compact(compact("palette")[1]).tensors["model.layers.0.mlp.up_proj.weight"]
    assert tensor.bytes == 768 * 256 * 3 // 8 + 8 * 8 * 2  # eight groups of 100 channels, eight values of two bytes
    assert tensor.bits_per_weight == 8 * tensor.bytes / (768 * 256)


def test_equal_tensors_zeros_and_odd_shapes_are_exact(stdlib_model: Path, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    shutil.copytree(stdlib_model, dense)
    tensors = load_file(dense / "model.safetensors") | {
        "twice": torch.arange(1, 8.0),
        "again": torch.arange(1, 8.0),
        "other_shape": torch.arange(1, 8.0)[None],
        "negative_zero": torch.tensor([0.0, -0.0] + [0.0] * 30),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False, True]),
        "infinite": torch.tensor([float("nan"), float("inf")], dtype=torch.float16),
    }
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    Compact().write(run_of(dense, dense, tmp_path / "out"))
    forms = load_compact(tmp_path / "out").forms
    assert {forms[name].form for name in ("twice", "again")} == {"stored", "same"}
    assert forms["other_shape"].form == "stored"
    assert forms["negative_zero"].bytes == 4 + 4
    decoded = CompactCheckpoint(tmp_path / "out")
    for name, tensor in tensors.items():
        found = decoded.tensor(name)
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert found.contiguous().view(-1).view(torch.uint8).equal(tensor.view(-1).view(torch.uint8))


def test_weights_that_left_their_tables_are_not_exported(
    compact: Callable[[str], tuple[Path, Path]], stdlib_model: Path, tmp_path: Path
) -> None:
    dense = tmp_path / "dense"
    shutil.copytree(compact("palette")[0], dense)
    tensors = load_file(dense / "model.safetensors")
    tensors[TABLE][5, 5] += 1
    save_file(tensors, dense / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportMismatch, match=r"down_proj\.weight does not decode"):
        Compact().write(run_of(stdlib_model, dense, tmp_path / "out"))


Change = Callable[[dict[str, Any]], Any]


def _stored_as(name: str, **changes: Any) -> Change:
    def change(document: dict[str, Any]) -> None:
        document["tensors"][name]["stored_as"].update(changes)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_stored_as(TABLE, bits=9), "less than or equal to 8"),
        (_stored_as(TABLE, bits=4), "bytes are not those of its form"),
        (_stored_as(TABLE, shape=[768, 256], rows=13), "bytes are not those of its form"),
        (_stored_as(TABLE, rows=0), "greater than or equal to 1"),
        (_stored_as(TABLE, dtype="F4"), "Input should be"),
        (_stored_as(TABLE, shape=[-1, 5]), "greater than or equal to 0"),
        (_stored_as("model.norm.weight", form="same", of="model.norm.weight"), "bytes are not those|cannot be"),
        (lambda document: document.update(data_bytes=1), "data_bytes"),
        (lambda document: document["tensors"].pop(TABLE), "data_bytes"),
        (lambda document: document["tensors"][TABLE].update(stored_as={"form": "pickle"}), "does not match any"),
        (_stored_as(TABLE, form="buckets", buckets=1, seed=0, hash="murmur3"), "does not describe"),
    ],
)
def test_a_document_that_does_not_add_up_is_refused(
    change: Change, message: str, compact: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder = tmp_path / "compact"
    shutil.copytree(compact("palette")[1], folder)
    document = json.loads((folder / "compact.json").read_text())
    change(document)
    (folder / "compact.json").write_text(json.dumps(document))
    with pytest.raises(BadCheckpoint, match=message):
        decode(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_much_larger_than_its_bytes_is_refused() -> None:
    shape = {"shape": [2**30, 2**30], "dtype": "BF16", "form": "buckets", "buckets": 1, "seed": 0, "hash": "murmur3"}
    tensor = {"stored_as": shape, "bytes": 2, "bits_per_weight": 0.0}
    document = {"tensors": {"a": tensor}, "data_bytes": 2, "parameters": 2**60, "bits_per_weight": 0.0}
    with pytest.raises(ValidationError, match="from 2 bytes"):
        Compacted.model_validate(document)


@pytest.mark.parametrize("lie", ["cut", "wide", "more", "less", "no document"])
def test_a_file_that_is_not_what_the_document_says_is_refused(
    lie: str, compact: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder = tmp_path / "compact"
    shutil.copytree(compact("palette")[1], folder)
    path = folder / "compact.safetensors"
    tensors = load_file(path)
    if lie == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif lie == "no document":
        (folder / "compact.json").unlink()
    else:
        table = tensors[f"{TABLE}.lut"]
        tensors[f"{TABLE}.lut"] = table.float() if lie == "wide" else table
        if lie == "less":
            del tensors[f"{TABLE}.lut"]
        save_file(tensors | ({"extra": table.clone()} if lie == "more" else {}), path)
    with pytest.raises(BadCheckpoint):
        CompactCheckpoint(folder)


def test_a_mask_with_other_bits_than_values_is_refused(
    compact: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder = tmp_path / "compact"
    shutil.copytree(compact("sparse")[1], folder)
    tensors = load_file(folder / "compact.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[f"{name}.mask"][0] = ~tensors[f"{name}.mask"][0]
    save_file(tensors, folder / "compact.safetensors")
    with pytest.raises(BadCheckpoint, match=r"mask of model\.layers\.0"):
        CompactCheckpoint(folder).tensor(name)


def test_how_the_model_is_run_goes_along_and_a_used_folder_does_not_mix_in(stdlib_model: Path, tmp_path: Path) -> None:
    windowed = run_of(stdlib_model, stdlib_model, tmp_path / "windowed")
    AttentionWindow(window=28).apply(windowed)
    stored = run_of(stdlib_model, windowed.out, tmp_path / "stored")
    Compact().write(stored)
    decode(stored.out, tmp_path / "decoded")
    assert load_conditional(tmp_path / "decoded") == load_conditional(windowed.out) is not None
    config = (stored.out / "config.json").read_text()
    for used in (tmp_path / "decoded", stored.out):
        with pytest.raises(FolderUnusable, match="is not empty"):
            decode(stored.out, used)
    assert (stored.out / "config.json").read_text() == config


def test_bytes_behind_the_parts_are_refused(compact: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    folder = tmp_path / "longer"
    shutil.copytree(compact("palette")[1], folder)
    with (folder / "compact.safetensors").open("ab") as file:
        file.write(b"surprise")
    with pytest.raises(BadCheckpoint, match="between or behind"):
        CompactCheckpoint(folder)


def test_an_engine_cannot_be_asked_for() -> None:
    with pytest.raises(ValidationError, match="no engine loads a compact checkpoint"):
        Compact(engine="vllm")


def test_wide_tensors_lie_first(tmp_path: Path) -> None:
    with TensorFile(tmp_path / "file.safetensors", tmp_path) as file:
        for dtype in (torch.uint8, torch.float16, torch.int64, torch.float32):
            file.add(str(dtype), torch.ones(3, dtype=dtype))
        file.close()
    with safe_open(tmp_path / "file.safetensors", "pt") as opened:
        assert all(torch.equal(opened.get_tensor(name).long(), torch.ones(3).long()) for name in opened.offset_keys())
        assert opened.offset_keys() == ["torch.int64", "torch.float32", "torch.float16", "torch.uint8"]


@pytest.mark.usefixtures("stages_here")
def test_a_run_reports_the_bytes_that_are_there(stdlib_model: Path, tmp_path: Path) -> None:
    recipe = recipe_from(
        {
            "model": {"path": str(stdlib_model)},
            "calibration": {"dataset": "python-stdlib", "samples": 2, "sequence_length": 32},
            "chain": [{"technique": "palettize", "bits": 4, "compare": False}],
            "target": {"format": "compact"},
            "evaluate": [{"evaluator": "fidelity", "samples": 2, "sequence_length": 32}],
        }
    )
    optimize(recipe, tmp_path / "out", tmp_path / "work", lambda _: None)
    report = Report.model_validate_json((tmp_path / "out" / "report.json").read_text())
    rows = {row.name: row for row in report.measurements}
    assert rows["weight_bytes"].result == (tmp_path / "out" / "compact.safetensors").stat().st_size
    assert rows["bits_per_weight"].result is not None
    assert rows["bits_per_weight"].result < 5.3
    assert rows["mean_kl"].result is not None
    assert 0 < rows["mean_kl"].result < 0.3
    assert "optcore.export.compact_decoder" in (tmp_path / "out" / "README.md").read_text()
    decode(tmp_path / "out", tmp_path / "plain")
    AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
