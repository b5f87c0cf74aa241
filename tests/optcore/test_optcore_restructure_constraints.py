"""What a restructuring made is there after training and rounding: in closed form, and in the files of whole stages."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import export, plain, run_of
from fixtures.tiny_models import MakeModel
from fixtures.training import killed_and_gone_on, logits_of, training_run
from fixtures.training_stages import AsWritten
from safetensors.torch import load_file, save_file
from torch import nn

from optcore.algorithms.codes import fake_quantize
from optcore.algorithms.scales import find_scales
from optcore.errors import BadCheckpoint, FormLost, RecipeError
from optcore.export.compressed_tensors import CompressedTensors
from optcore.export.compressed_tensors_decoder import CompressedDecoder
from optcore.plan import check
from optcore.recipe import recipe_from
from optcore.schemes import PRESETS
from optcore.sparsity import QUANTIZED, load_sparsity
from optcore.techniques import Distill, Finetune, Heal, Ptq, Sparsify
from optcore.training import dense_stage
from optcore.training.constraints import Mask, Shared
from optcore.training.ranks import Ranks

torch.set_num_threads(1)
SHORT = {"batch": 2, "sequence_length": 16, "validation": {"samples": 2}, "warmup": 0, "steps": 2}
QUICK = {**SHORT, "learning_rate": 0.01, "data": {"kind": "random", "windows": 8}}
LORA = {"scope": "lora", "lora": {"rank": 4}, "learning_rate": 0.05}


def _sparse(source: Path, folder: Path, **settings: object) -> Path:
    """A sparse checkpoint with values in float32, so that nothing but training changes them."""
    wide = folder / "wide"
    shutil.copytree(source, wide)
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    tensors = {name: tensor.float() for name, tensor in load_file(wide / "model.safetensors").items()}
    save_file(tensors, wide / "model.safetensors", metadata={"format": "pt"})
    run = run_of(wide, wide, folder / "sparse")
    Sparsify.model_validate({"method": "magnitude", **settings}).apply(run)
    return run.out


def _check_zeros(before: Path, after: Path) -> None:
    """None is filled, the document counts them, and what stays has moved in most."""
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    read, found = load_sparsity(before), load_sparsity(after)
    assert read
    assert found
    assert found.tensors.keys() == read.tensors.keys()
    assert (found.method, found.accelerated_by) == (read.method, read.accelerated_by)
    for name, described in found.tensors.items():
        assert not new[name][old[name] == 0].any()
        assert described.nonzero == int(new[name].count_nonzero())
        assert (described.pattern, described.total) == (read.tensors[name].pattern, new[name].numel())
    moved = [name for name in found.tensors if not torch.equal(new[name], old[name])]
    assert len(moved) > 0.5 * len(found.tensors)  # AdaLoRA may leave a layer no rank


def test_a_mask_is_adamw_on_what_is_not_zero() -> None:
    """The same steps as on a shorter vector; decay and moments included. NaN of what cannot move is nobody's."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(4, 6, generator=generator) * (torch.rand(4, 6, generator=generator) > 0.5)
    whole, short = nn.Parameter(start.clone()), nn.Parameter(start[start != 0].clone())
    mask = Mask(whole)
    optimizers = [torch.optim.AdamW([one], 0.1, weight_decay=0.1) for one in (whole, short)]
    for _ in range(5):
        gradient = torch.randn(4, 6, generator=generator)
        whole.grad, short.grad = gradient.where(start != 0, torch.nan), gradient[start != 0]
        mask.project_gradients()
        assert torch.linalg.vector_norm(whole.grad) == pytest.approx(torch.linalg.vector_norm(short.grad).item())
        for optimizer in optimizers:
            optimizer.step()
        mask.project_values()
    assert torch.allclose(whole[start != 0], short, atol=1e-7)
    assert not whole[start == 0].any()
    assert not optimizers[0].state[whole]["exp_avg"][start == 0].any()


@pytest.mark.parametrize("signed", [False, True])
def test_shared_values_move_as_the_bucket_s_own_would(signed: bool) -> None:
    """Two weights of different shapes on one codebook, against autograd through s v[index] in float64."""
    generator = torch.Generator().manual_seed(2)
    indices = [torch.randint(0, 5, shape, generator=generator) for shape in ((4, 6), (3, 7))]
    inputs = [torch.randn(8, 6, generator=generator), torch.randn(8, 7, generator=generator)]
    values = nn.Parameter(torch.randn(6, generator=generator).double())  # of the last nobody is a member
    signs = [1 - 2 * torch.randint(0, 1 + signed, one.shape, generator=generator) for one in indices]
    weights = [nn.Parameter(values.detach().float()[i] * s) for i, s in zip(indices, signs, strict=True)]
    shared = Shared(weights, indices, 6, Ranks(), signs if signed else None)
    optimizer, exact = torch.optim.AdamW(weights, 0.05), torch.optim.AdamW([values], 0.05)

    def loss(matrices: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        return sum(((x.to(dtype) @ w.T).tanh() ** 2).sum() for x, w in zip(inputs, matrices, strict=True))  # type: ignore[return-value]

    for _ in range(6):
        optimizer.zero_grad()
        exact.zero_grad()
        loss(list(weights), torch.float32).backward()
        loss([values[i] * s for i, s in zip(indices, signs, strict=True)], torch.float64).backward()
        shared.project_gradients()
        for weight, index, sign in zip(weights, indices, signs, strict=True):
            assert weight.grad is not None
            assert values.grad is not None
            assert torch.allclose(weight.grad.double(), values.grad[index] * sign, rtol=1e-4, atol=1e-5)
        optimizer.step()
        exact.step()
        shared.project_values()
        for bucket in range(5):
            members = torch.cat(
                [(w.detach() * s)[i == bucket] for w, i, s in zip(weights, indices, signs, strict=True)]
            )
            assert members.unique().numel() == 1
    before = [weight.detach().clone() for weight in weights]
    shared.project_values()
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    assert torch.allclose(weights[0].double(), values[indices[0]] * signs[0], atol=1e-5)


@pytest.mark.parametrize(
    ("family", "settings"), [("Qwen2", {"pattern": "2:4"}), ("GptOss", {"ratio": 0.6})], ids=["2:4", "fused-experts"]
)
@pytest.mark.usefixtures("keeps_the_last")
def test_full_training_keeps_zeros(
    family: str, settings: dict[str, Any], tiny_model: MakeModel, tmp_path: Path
) -> None:
    sparse = _sparse(tiny_model(family), tmp_path, **settings)
    technique = Finetune.model_validate({**QUICK, "weight_decay": 0.1})
    run = training_run(technique, sparse, sparse, tmp_path)
    technique.apply(run)
    _check_zeros(sparse, run.out)
    said: Any = run.results["sparsity"]
    assert said["share"] == pytest.approx(0.5 if "pattern" in settings else 0.6, abs=2e-3)


@pytest.mark.parametrize(
    "technique",
    [
        Finetune.model_validate({**QUICK, **LORA}),
        Finetune.model_validate({**QUICK, **LORA, "lora": {"rank": 4, "variant": "dora"}}),
        Finetune.model_validate({**QUICK, **LORA, "lora": {"rank": 4, "variant": "adalora"}}),
        Finetune.model_validate({**QUICK, **LORA, "lora": {"rank": 4, "base": "nf4"}}),
        Heal.model_validate({**QUICK, "learning_rate": 0.05}),
    ],
    ids=["lora", "dora", "adalora", "qlora", "heal"],
)
@pytest.mark.usefixtures("keeps_the_last")
def test_adapters_compute_as_they_are_merged(
    technique: Finetune | Heal, tiny_model: MakeModel, tmp_path: Path, as_written: AsWritten
) -> None:
    """The student that was trained says what the written checkpoint says: no zero was filled and cut away later."""
    sparse = _sparse(tiny_model("Llama"), tmp_path, pattern="2:4")
    tokens_BT = torch.arange(3, 19)[None]
    said = as_written(tokens_BT)
    run = training_run(technique, tiny_model("Llama"), sparse, tmp_path)
    technique.apply(run)
    ((_, trained),) = said
    _check_zeros(sparse, run.out)
    assert torch.allclose(trained, logits_of(run.out, tokens_BT), atol=1e-4)
    assert not torch.allclose(trained, logits_of(sparse, tokens_BT), atol=1e-2)


@pytest.mark.usefixtures("keeps_the_last")
def test_what_would_fill_zeros_is_never_written_as_sparse(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse = _sparse(tiny_model("Llama"), tmp_path, pattern="2:4")
    dropped = Finetune.model_validate({**QUICK, **LORA, "lora": {"rank": 4, "dropout": 0.1}})
    run = training_run(dropped, sparse, sparse, tmp_path / "dropped")
    with pytest.raises(RecipeError, match="no input of their own to drop from"):
        dropped.apply(run)
    monkeypatch.setattr(dense_stage, "constraints_of", lambda *_: ())
    technique = Finetune.model_validate(QUICK)
    run = training_run(technique, sparse, sparse, tmp_path / "filled")
    with pytest.raises(FormLost, match=r"weights of model\.layers\.0\..* were zero, and are not any more"):
        technique.apply(run)
    (sparse / "sparsity.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match=r"sparsity\.json is not what"):
        load_sparsity(sparse)


def test_a_killed_run_keeps_the_mask_and_goes_on_exactly(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Between two checkpoints."""
    source = tiny_model("Llama")
    sparse = _sparse(source, tmp_path, pattern="2:4")
    technique = Distill.model_validate({**QUICK, "steps": 5, "learning_rate": 1e-3, "save_every": 2})
    runs = killed_and_gone_on(technique, source, sparse, tmp_path, 3)
    whole, killed = ((run.out / "model.safetensors").read_bytes() for run in runs)
    assert whole == killed
    _check_zeros(sparse, runs[1].out)


@pytest.mark.parametrize("method", ["max", "mse"])
@pytest.mark.parametrize("scheme", [name for name in PRESETS if PRESETS[name].weights.type not in ("uint", "iq")])
def test_every_format_that_has_a_zero_rounds_zero_to_it(scheme: str, method: Any) -> None:
    """With zero points too, and in groups that hold nothing but values of one sign, or zeros. A minimum that is no
    multiple of the step leaves none to ggml's formats that have one, nor does the codebook of IQ4."""
    args, generator = PRESETS[scheme].weights, torch.Generator().manual_seed(3)
    weight_NK = torch.randn(128, 256, generator=generator) * (torch.rand(128, 256, generator=generator) > 0.5)
    weight_NK[:32] = weight_NK[:32].abs()
    weight_NK[32:64] = -weight_NK[32:64].abs()
    weight_NK[64] = 0
    scales = find_scales([weight_NK], args, method, torch.bfloat16)[0]
    rounded_NK = fake_quantize(weight_NK, scales, args)
    assert rounded_NK.any()
    assert not rounded_NK[weight_NK == 0].any()


@pytest.mark.parametrize(
    ("family", "scheme", "smoothing"),
    [("Qwen2", "int4_g32", "awq"), ("GptOss", "int4_asym_g32", "none"), ("Llama", "fp8_dynamic", "smoothquant")],
)
def test_zeros_are_in_the_exported_codes(
    family: str, scheme: str, smoothing: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    sparse = _sparse(tiny_model(family), tmp_path, pattern="2:4")
    run = run_of(sparse, sparse, tmp_path / "quantized")
    plain(scheme, scale_search="mse", smoothing=smoothing).apply(run)
    export(CompressedTensors(), run.out, tmp_path / "exported", sparse)
    found, decoder = load_sparsity(tmp_path / "exported"), CompressedDecoder(tmp_path / "exported")
    assert found
    assert found == load_sparsity(run.out)
    assert found.accelerated_by == QUANTIZED
    assert 0.5 <= found.share < 0.75  # what is small rounds to zero too
    tensors = load_file(sparse / "model.safetensors")
    for name, described in found.tensors.items():
        if name.endswith(".weight"):
            value = decoder.weight(name.removesuffix(".weight"))
            assert not value[tensors[name] == 0].any()
            assert described.nonzero == int(value.count_nonzero())


def test_error_feedback_fills_zeros_and_says_so(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Of a model that came sparse; in a chain it is refused."""
    sparse = _sparse(tiny_model("Llama"), tmp_path, pattern="2:4")
    run = run_of(sparse, sparse, tmp_path / "quantized")
    Ptq(scheme="int4_g32", smoothing="none").apply(run)
    assert load_sparsity(run.out) is None
    assert "is not sparse any more" in str(run.results["notices"])


NEAREST = {"technique": "ptq", "scheme": "int4", "rounding": "nearest"}
GATE = {"metric": "kl", "max": 0.1, "on_fail": "fallback"}


@pytest.mark.parametrize(
    "after",
    [
        [{"technique": "finetune"}, {"technique": "distill"}, {"technique": "heal"}],
        [{"technique": "finetune", "scope": "lora"}, NEAREST],
        [{**NEAREST, "gate": GATE, "fallback": [{"scheme": "fp8"}]}],
        [{**NEAREST, "technique": "auto_quantize", "candidates": ["int4", "fp8"], "effective_bits": 6, "scheme": None}],
    ],
)
def test_what_keeps_zeros_may_follow(after: list[dict[str, Any]]) -> None:
    chain = [{"technique": "sparsify"}, *({k: v for k, v in one.items() if v is not None} for one in after)]
    check(recipe_from({"model": {"id": "org/model"}, "chain": chain, "target": {"format": "dense"}}))


@pytest.mark.parametrize(
    ("after", "remedy"),
    [
        ([{"technique": "ptq", "scheme": "int4"}], "use `rounding: nearest`"),
        ([{**NEAREST, "gate": GATE, "fallback": [{"technique": "qad"}]}], "without `qad` in `fallback`"),
        ([NEAREST, {"technique": "qad"}], "the last of the chain"),
        ([{"technique": "distill", "student": {"id": "org/small"}}], "leave out `student`"),
        ([{"technique": "heal", "lora": {"rank": 8, "dropout": 0.1}}], "leave out `lora.dropout`"),
        ([{"technique": "finetune", "scope": "lora", "lora": {"dropout": 0.1}}], "leave out `lora.dropout`"),
        ([{"technique": "rotate"}], "the last of the chain"),
        ([{"technique": "finetune"}, {"technique": "prune", "depth": 1}], "the last of the chain"),
    ],
)
def test_what_would_fill_zeros_is_refused(after: list[dict[str, Any]], remedy: str) -> None:
    chain = [{"technique": "sparsify"}, *after]
    with pytest.raises(RecipeError, match="the mask of zeros would be lost") as caught:
        check(recipe_from({"model": {"id": "org/model"}, "chain": chain, "target": {"format": "dense"}}))
    assert caught.value.field == f"/chain/{len(after)}"
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("after", "remedy"),
    [
        ({**NEAREST}, "the last of the chain"),
        ({"technique": "distill", "student": {"id": "org/small"}}, "leave out `student`"),
        ({"technique": "finetune", "scope": "lora"}, "use `scope: full`"),
        ({"technique": "heal"}, "use `adapters: false`"),
    ],
)
def test_what_would_raise_a_low_rank_is_refused(after: dict[str, Any], remedy: str) -> None:
    chain = [{"technique": "low_rank"}, after]
    with pytest.raises(RecipeError, match="the low rank would be lost") as caught:
        check(recipe_from({"model": {"id": "org/model"}, "chain": chain, "target": {"format": "dense"}}))
    assert remedy in caught.value.remedy
