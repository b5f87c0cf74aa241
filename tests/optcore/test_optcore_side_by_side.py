"""Any result against its source: other weights, another depth or width, quantized or not."""

import shutil
from pathlib import Path

import pytest
import torch
from fixtures.exporting import plain, run_of
from fixtures.tiny_models import SIZES, MakeModel, make_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import AutoModelForCausalLM

from optcore.calibration.text import Texts
from optcore.errors import BadCheckpoint
from optcore.evaluate import Fidelity, Throughput
from optcore.evaluate.fidelity_stream import compare
from optcore.export import Dense
from optcore.techniques import Rotate

WINDOWS, LENGTH = 2, 48
Shape = dict[str, int]
NARROW: Shape = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128}


@pytest.fixture
def source(tiny_model: MakeModel) -> Path:
    return tiny_model("Llama")


def trained(source: Path, folder: Path) -> Path:
    """The source as a little training would leave it."""
    shutil.copytree(source, folder)
    noise = torch.Generator().manual_seed(3)
    tensors = load_file(folder / "model.safetensors")
    moved = {
        name: (tensor + 0.1 * tensor.float().std() * torch.randn(tensor.shape, generator=noise)).to(tensor.dtype)
        if tensor.ndim == 2
        else tensor
        for name, tensor in tensors.items()
    }
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def shaped(source: Path, folder: Path, shape: Shape) -> Path:
    folder.mkdir()
    return make_model("Llama", shape, folder, source)


def by_transformers(source: Path, result: Path, run_folder: Path) -> tuple[float, float, float]:
    """Mean KL, perplexity of the result and agreement, with both models whole."""
    run = run_of(source, result, run_folder)
    tokens = Texts(source, run.calibration, ()).evaluation_windows(WINDOWS, LENGTH, 512)
    with torch.no_grad():
        models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (source, result)]
        before, after = (model(tokens).logits[:, :-1].flatten(0, 1) for model in models)
    p, q = log_softmax(before, -1), log_softmax(after, -1)
    loss = cross_entropy(after, tokens[:, 1:].flatten())
    agreement = (before.argmax(-1) == after.argmax(-1)).float().mean()
    return kl_div(q, p, log_target=True, reduction="batchmean").item(), loss.exp().item(), agreement.item()


@pytest.mark.parametrize("shape", [{}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}, NARROW], ids=str)
def test_a_dense_result_is_compared_with_its_source(shape: Shape, source: Path, tmp_path: Path) -> None:
    result = shaped(source, tmp_path / "model", shape) if shape else trained(source, tmp_path / "model")
    found, errors = compare(run_of(source, result, tmp_path / "out"), WINDOWS, LENGTH)
    measured = (found["result"].mean_kl, found["result"].perplexity, found["result"].agreement)
    assert measured == pytest.approx(by_transformers(source, result, tmp_path / "out"), rel=1e-4)
    assert (found["source"].mean_kl, found["source"].agreement) == (0, 1)
    assert found["result"].mean_kl > 1e-4
    assert set(found) == {"source", "result"}
    assert [name for name, _ in errors] == ([] if shape else ["model.layers.0", "model.layers.1"])
    assert all(0 < error < 1 for _, error in errors)


@pytest.mark.parametrize("shape", [{}, {"num_hidden_layers": 1}, NARROW], ids=str)
def test_a_quantized_result_of_other_weights_has_a_baseline(shape: Shape, source: Path, tmp_path: Path) -> None:
    dense = shaped(source, tmp_path / "model", shape) if shape else trained(source, tmp_path / "model")
    quantized = tmp_path / "quantized"
    plain("fp8", scale_search="mse").apply(run_of(source, dense, quantized))
    found, errors = compare(run_of(source, quantized, tmp_path / "out"), WINDOWS, LENGTH)
    unrounded, *_ = by_transformers(source, dense, tmp_path / "out")
    assert set(found) == {"source", "result", "baseline"}
    assert found["result"].mean_kl == pytest.approx(unrounded, rel=0.2)
    assert found["result"].mean_kl != pytest.approx(unrounded, rel=1e-4)
    assert len(errors) == (0 if shape else 2)


def test_the_same_weights_are_one_model(source: Path, tmp_path: Path) -> None:
    result = shutil.copytree(source, tmp_path / "model")
    found, errors = compare(run_of(source, result, tmp_path / "out"), WINDOWS, LENGTH)
    assert found["result"] == found["source"]
    assert [error for _, error in errors] == [0, 0]


@pytest.mark.parametrize(("residual", "layers"), [(True, 0), (False, 2)])
def test_layers_of_a_rotated_model_are_in_another_basis(
    residual: bool, layers: int, source: Path, tmp_path: Path
) -> None:
    rotated = tmp_path / "model"
    Rotate(residual=residual).apply(run_of(source, source, rotated))
    run = run_of(source, rotated, tmp_path / "out")
    rows = {row.name: row for row in Fidelity(samples=WINDOWS, sequence_length=LENGTH).measure(run)}
    assert 0 < (rows["mean_kl"].result or 0) < 1e-3
    assert rows["mean_kl"].baseline is None
    assert len(run.results["layer_errors"]) == layers  # type: ignore[arg-type]


def test_a_dense_result_is_as_fast_as_any_in_transformers(source: Path, tmp_path: Path) -> None:
    run = run_of(source, trained(source, tmp_path / "model"), tmp_path / "out")
    Dense().write(run)
    run.export, run.target = run.out, "dense"
    rows = {row.name: row.result or 0 for row in Throughput(prompt_tokens=4, new_tokens=2).measure(run)}
    assert rows.keys() == {"prefill_speed", "decode_speed", "peak_memory_bytes"}
    assert all(value > 0 for value in rows.values())


def test_another_vocabulary_is_refused(source: Path, tmp_path: Path) -> None:
    result = shaped(source, tmp_path / "model", {"vocab_size": SIZES["vocab_size"] + 64})
    with pytest.raises(BadCheckpoint, match="the result knows 2112 tokens and the source 2048"):
        compare(run_of(source, result, tmp_path / "out"), WINDOWS, LENGTH)
