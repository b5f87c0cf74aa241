"""Adapters: what is written is what was trained, ranks shrink to their budget, and a killed run goes on exactly."""

import shutil
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import Quantize, plain, run_of, simulated_logits
from fixtures.tiny_models import MakeModel
from fixtures.training import Killed, ending_at, logits_of, training_run
from fixtures.training_stages import AsWritten, Written
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from optcore.algorithms.codes import encode, fake_quantize
from optcore.algorithms.scales import find_scales
from optcore.errors import RecipeError
from optcore.run import Run
from optcore.schemes import PRESETS, stored_bits
from optcore.streaming.decoder import Decoder
from optcore.streaming.quantized import QuantizedCheckpoint
from optcore.techniques import Finetune, Qad, Qat
from optcore.techniques.adapters import Lora
from optcore.training import loop
from optcore.training.adapters import add_adapters, merged_weight
from optcore.training.checkpoints import State
from optcore.training.fake_quant import FakeQuantLinear
from optcore.training.quantized_base import QuantizedBaseLinear, hold_in_nf4
from optcore.training.rank_budget import RankBudget
from optcore.training.student import Student
from optcore.training.windows import Windows

SHORT = {"batch": 4, "sequence_length": 32, "validation": {"samples": 4}, "data": {"kind": "random", "windows": 40}}
TOKENS_BT = torch.arange(3, 51)[None]
NF4 = PRESETS["nf4"].weights


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: MakeModel) -> Path:
    """A small dense model, stored in float32: what is compared then is not what storing rounds."""
    return in_float32(tiny_model("Llama"), tmp_path_factory.mktemp("float32"))


@pytest.fixture
def trained(as_written: AsWritten) -> Written:
    """Students as they were when they were written, and their logits."""
    return as_written(TOKENS_BT)


def in_float32(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder, dirs_exist_ok=True)
    path = folder / "model.safetensors"
    save_file({name: tensor.float() for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    return folder


def finetune(lora: dict[str, Any], **more: Any) -> Finetune:
    settings = {"scope": "lora", "steps": 4, "learning_rate": 5e-3, "warmup": 0.0, "schedule": "constant", **SHORT}
    return Finetune.model_validate({**settings, "lora": {"rank": 4, **lora}, **more})


@pytest.mark.parametrize("family", ["Llama", "Mixtral", "GptOss", "Qwen2"])
@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"variant": "dora", "dropout": 0.1},
        {"variant": "adalora", "rank": 3, "interval": 1, "final": 0.0},
        {"base": "nf4"},
        {"base": "nf4", "variant": "dora", "modules": ["re:.*(q_proj|up_proj|w1)$"]},
    ],
    ids=["lora", "dora", "adalora", "qlora", "qdora"],
)
def test_the_merged_model_computes_what_was_trained(
    lora: dict[str, Any],
    family: str,
    tiny_model: MakeModel,
    tmp_path: Path,
    trained: Written,
) -> None:
    source = in_float32(tiny_model(family), tmp_path / "model")
    technique = finetune(lora, data={"kind": "random", "windows": 8}, batch=2)
    run = training_run(technique, source, source, tmp_path)
    keep_the_last(run, technique)
    ((student, unmerged),) = trained
    merged, before = logits_of(run.out, TOKENS_BT), logits_of(source, TOKENS_BT)
    moved, left = (unmerged - before).norm(), (merged - unmerged).norm()
    print(f"{family}: moved by {moved / before.norm():.3f}, merging by {left / before.norm():.1e}")
    assert left <= 1e-4 * unmerged.norm()
    assert moved > 100 * left
    assert len(student.adapters) == len([one for one in student.model.modules() if hasattr(one, "lora_A")])


def keep_the_last(run: Run, technique: Any) -> None:
    """Random tokens teach nothing: the best parameters would be the untrained ones."""
    calls = count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "judge", lambda *_: next(calls))  # asked of the new ones first
        technique.apply(run)


def test_a_base_in_nf4_computes_what_our_simulation_does_in_four_bits() -> None:
    plain_linear = nn.Linear(256, 192)
    base = QuantizedBaseLinear(plain_linear)
    weight_NK = plain_linear.weight.detach()
    scales = find_scales([weight_NK], NF4, "max", torch.float32)[0]
    simulated = fake_quantize(weight_NK, scales, NF4)
    held = sum(buffer.nbytes for buffer in base.buffers())
    print(f"{8 * held / weight_NK.numel():.4f} bits a weight")
    assert 8 * held == stored_bits(NF4, (192, 256))
    assert 8 * held / weight_NK.numel() < 4.13
    assert not any(parameter is not base.bias for parameter in base.parameters())
    assert torch.equal(base.weight, simulated)
    x = torch.randn(3, 5, 256, requires_grad=True)
    wanted = torch.nn.functional.linear(x, simulated, plain_linear.bias)
    torch.testing.assert_close(base(x), wanted)
    (given,) = torch.autograd.grad(base(x).square().sum(), x)
    torch.testing.assert_close(given, torch.autograd.grad(wanted.square().sum(), x)[0])


def test_a_model_is_put_into_codes_layer_by_layer(model: Path) -> None:
    student = Student(model, held=hold_in_nf4)
    add_adapters(student, Lora(rank=2), seed=0)
    held = [one for one in student.layers.modules() if isinstance(one, QuantizedBaseLinear)]
    assert len(held) == len(student.adapters) == 14
    assert all(parameter.ndim == 1 or "lora" in name for name, parameter in student.layers.named_parameters())


@pytest.mark.parametrize("variant", ["lora", "dora", "adalora"])
@pytest.mark.parametrize("scheme", ["int4_g32", "nvfp4"])
def test_codes_are_those_of_the_merged_weight(
    variant: str, scheme: str, model: Path, tmp_path: Path, trained: Written
) -> None:
    plain(scheme).apply(run_of(model, model, tmp_path / "quantized"))
    lora = {"rank": 4, "variant": variant}
    settings = {"scope": "lora", "lora": lora, "steps": 3, "learning_rate": 0.02, "warmup": 0, "scales": "recompute"}
    technique = Qad.model_validate({**settings, **SHORT, "skip_below": 0})
    run = training_run(technique, model, tmp_path / "quantized", tmp_path)
    keep_the_last(run, technique)
    ((student, logits),) = trained
    written = QuantizedCheckpoint(run.out)
    differs = 0
    for name, adapter in student.adapters.items():
        module, args = student.linears[name], PRESETS[scheme].weights
        codes_NK, scales = written.codes(name)
        assert torch.equal(scales.step(), module.scales().step())
        wanted = encode(merged_weight(adapter).detach(), scales, args)
        assert torch.equal(codes_NK, wanted)
        differs += int((wanted != encode(module.weight.detach(), scales, args)).sum())
    assert differs > 100
    assert set(student.adapters) == set(student.linears)
    torch.testing.assert_close(simulated_logits(run.out, TOKENS_BT), logits, rtol=1e-3, atol=1e-4)
    assert_merge_is(run, student, model)


def assert_merge_is(run: Run, student: Student, model: Path) -> None:
    """The loss of merging, from the merged model in high precision and the written one, each by itself."""
    windows = Windows(run.windows)
    tokens_BT = windows.read(range(windows.facts.training, windows.facts.windows)).tokens_BT
    dense = Decoder(model)
    merged = dense.load_all()
    for index, layer in enumerate(student.layers):
        for path, module in layer.named_modules():
            if isinstance(module, FakeQuantLinear):
                own_path = f"{dense.layer_name(index)}.{path.removesuffix('.base_layer')}"
                merged.get_submodule(own_path).weight.data = module.merged().detach()
    with torch.no_grad():
        wanted = merged(input_ids=tokens_BT, use_cache=False).logits.log_softmax(-1)[:, :-1]
    said = simulated_logits(run.out, tokens_BT).log_softmax(-1)[:, :-1]
    kl = float((wanted.exp() * (wanted - said)).sum(-1).mean())
    found: Any = run.results["merge"]
    print(f"merging and rounding: {found['kl']:.5f} nats a token")
    assert found["kl"] == pytest.approx(kl, rel=0.02)
    assert kl > 0


def test_an_adapter_beside_a_rounded_weight_gets_the_gradient_of_the_merged_one(quantized: Quantize) -> None:
    student = Student(quantized("int4_g32"))
    student.simulate("freeze")
    add_adapters(student, Lora(rank=4), seed=1)
    before = student.model(input_ids=TOKENS_BT, use_cache=False).logits
    torch.testing.assert_close(before, simulated_logits(student.folder, TOKENS_BT), rtol=1e-3, atol=1e-3)
    before.square().mean().backward()
    moved = [name for name, value in student.model.named_parameters() if value.grad is not None]
    assert all(".lora_" in name for name in moved)
    assert sum(".lora_B." in name for name in moved) == len(student.linears)


def test_ranks_shrink_to_the_budget(model: Path, tmp_path: Path) -> None:
    student = Student(model)
    lora = Lora(rank=2, variant="adalora", initial_rank=6, warm=0.1, final=0.2, interval=1)
    add_adapters(student, lora, seed=0)
    budget = RankBudget(student.layers, lora, steps=20)
    optimizer = torch.optim.AdamW([value for value in student.model.parameters() if value.requires_grad], 0.01)
    seen = []
    for step in range(20):
        loss = student.model(input_ids=TOKENS_BT, use_cache=False).logits.square().mean() + budget.penalty()
        loss.backward()
        optimizer.step()
        budget.update(step + 1)
        optimizer.zero_grad()
        seen.append(budget.ranks)
    print("ranks:", *seen)
    assert seen[0] == 14 * 6
    assert seen[-1] == budget.target == 14 * 2
    assert seen[2:] == sorted(seen[2:], reverse=True)
    left = [int(one.lora_E["default"].count_nonzero()) for one in student.adapters.values()]
    assert len(set(left)) > 1  # not each layer the same


@pytest.mark.parametrize(
    ("lora", "killed"),
    [
        ({"dropout": 0.2}, 8),
        ({"variant": "adalora", "interval": 2, "rank": 2}, 8),
        ({"variant": "adalora", "interval": 2, "rank": 2}, 11),
        ({"base": "nf4"}, 8),
    ],
    ids=["lora", "adalora", "adalora-fixed", "qlora"],
)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    lora: dict[str, Any], killed: int, model: Path, tmp_path: Path
) -> None:
    technique = finetune(lora, steps=12, save_every=5, micro_batch=2)
    losses = []
    for name, killed_at in (("whole", 0), ("killed", killed)):
        run = training_run(technique, model, model, tmp_path / name)
        if killed_at:
            with pytest.raises(Killed), ending_at(run, killed_at):
                technique.apply(run)
        technique.apply(run)
        losses.append(_state(run).losses)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 12
    first, second = (load_file(tmp_path / name / "out" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def _state(run: Run) -> State:
    (path,) = run.records.glob("step-*/state.json")
    return State.model_validate_json(path.read_text())


def test_exactly_what_is_named_gets_an_adapter(tiny_model: MakeModel) -> None:
    """PEFT takes a list of names for endings; an expert's number is an ending of another one's."""
    student = Student(tiny_model("Mixtral"))
    names = ["model.layers.1.self_attn.q_proj", "model.layers.0.block_sparse_moe.experts.1.w1"]
    add_adapters(student, Lora(rank=2, modules=tuple(names)), seed=0)
    assert set(student.adapters) == set(names)
    assert sum(hasattr(module, "lora_A") for module in student.model.modules()) == 2
    assert "block_sparse_moe.gate" not in str(student.adapters)


def test_adapters_start_alike_in_every_process_and_differ_by_seed(model: Path) -> None:
    def start(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(seed + 1)  # whatever was drawn before
        student = Student(model)
        add_adapters(student, Lora(rank=4), seed)
        return {name: value for name, value in student.model.named_parameters() if value.requires_grad}

    first, again, other = start(1), start(1), start(2)
    assert list(first) == list(again) == list(other)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_norms_train_beside_adapters(model: Path, tmp_path: Path) -> None:
    plain("int8").apply(run_of(model, model, tmp_path / "quantized"))
    settings = {"scope": "lora", "lora": {"variant": "dora"}, "norms": True, "steps": 2, "learning_rate": 0.02}
    technique = Qat.model_validate({**settings, **SHORT, "skip_below": 0, "warmup": 0})
    run = training_run(technique, model, tmp_path / "quantized", tmp_path)
    keep_the_last(run, technique)
    norm = "model.layers.0.input_layernorm.weight"
    assert not torch.equal(QuantizedCheckpoint(run.out).tensor(norm), QuantizedCheckpoint(run.checkpoint).tensor(norm))


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"rank": 300}, "larger than any linear layer"),
        ({"rank": 100, "modules": ["re:.*k_proj$"]}, r"larger than model\.layers\.0\.self_attn\.k_proj \(64 x 128\)"),
        ({"modules": ["re:.*qq_proj"]}, "no linear layer of the decoder matches 're:.*qq_proj'"),
    ],
)
def test_adapters_that_cannot_be_are_refused(lora: dict[str, Any], said: str, model: Path) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        add_adapters(Student(model), Lora.model_validate(lora), seed=0)
    assert caught.value.remedy


def test_a_machine_without_peft_says_what_to_install(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(RecipeError, match="not installed") as caught:
        add_adapters(Student(model), Lora(), seed=0)
    assert "pip install" in caught.value.remedy


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora": {"rank": 4}}, "does nothing without"),
        ({"scope": "lora", "lora": {"initial_rank": 8}}, "is of `variant: adalora`"),
        ({"scope": "lora", "lora": {"variant": "adalora", "initial_rank": 16}}, "must be larger than rank"),
        ({"scope": "lora", "lora": {"variant": "adalora", "warm": 0.5, "final": 0.5}}, "leave no steps"),
        ({"scope": "lora", "lora": {"modules": ["re:("]}}, "not a regular expression"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], said: str) -> None:
    for technique in (Finetune, Qad):
        with pytest.raises(ValidationError, match=said):
            technique.model_validate(settings)


@pytest.mark.parametrize("lora", [{"base": "nf4"}, {"dropout": 0.1}])
def test_a_rounded_weight_takes_no_dropout_and_no_second_codes(lora: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="leave out"):
        Qad.model_validate({"scope": "lora", "lora": lora})
