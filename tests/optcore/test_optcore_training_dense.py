"""Fine-tuning and distillation of dense models: what they win, and the checkpoint that they leave."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import plain, run_of
from fixtures.tiny_models import MakeModel
from fixtures.training import Killed, ending_at, logits_of, training_run
from fixtures.training_stages import AsWritten
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from optcore.errors import RecipeError
from optcore.plan import check
from optcore.recipe import recipe_from
from optcore.run import Run
from optcore.sizes import read_header, weight_files
from optcore.techniques import Distill, Finetune, Heal
from optcore.training.generate import continued
from optcore.training.on_policy import OnPolicy
from optcore.training.student import Student
from optcore.training.windows import Batch, Windows

SHORT = {"batch": 4, "sequence_length": 64, "validation": {"samples": 8}, "warmup": 0.1}
LEARNS = {**SHORT, "steps": 10, "validation": {"samples": 8, "every": 5}, "gradient_checkpointing": False}
RANDOM = {"kind": "random", "windows": 16}
TOKENS_BT = torch.arange(3, 51)[None]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, stdlib_model: Path) -> Path:
    """The shipped model with noise on its matrices, each as a fifth of its size."""
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(stdlib_model, folder, dirs_exist_ok=True)
    path, generator = folder / "model.safetensors", torch.Generator().manual_seed(5)
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and "embed" not in name:
            noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std()
            tensors[name] = (tensor.float() + 0.2 * noise).to(tensor.dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_model: MakeModel) -> Path:
    """A smaller model with the shipped one's vocabulary, which knows nothing yet."""
    return tiny_model("Llama")


@pytest.mark.parametrize(
    "settings",
    [{"learning_rate": 1e-3}, {"learning_rate": 5e-3, "scope": "lora", "lora": {"rank": 8}}],
    ids=["full", "lora"],
)
def test_fine_tuning_mends_a_damaged_model(settings: dict[str, Any], damaged: Path, tmp_path: Path) -> None:
    technique = Finetune.model_validate({**LEARNS, "steps": 20, **settings})
    run = training_run(technique, damaged, damaged, tmp_path)
    technique.apply(run)
    noted: Any = run.results["training"]
    start, best = noted["start"]["cross_entropy"], noted["best"]["cross_entropy"]
    print(f"{start:.3f} -> {best:.3f} nats a token")
    assert best < start - 0.1
    assert _cross_entropy(run.out, run.windows) == pytest.approx(best, abs=0.01)
    header, before = (read_header(weight_files(folder)[0]) for folder in (run.out, damaged))
    assert header.keys() == before.keys()
    assert all(header[name]["dtype"] == before[name]["dtype"] for name in header)


@pytest.mark.parametrize("adapters", [True, False])
def test_healing_moves_norms_biases_and_adapters_alone(
    adapters: bool, damaged: Path, stdlib_model: Path, tmp_path: Path
) -> None:
    technique = Heal.model_validate({**LEARNS, "learning_rate": 3e-3, "adapters": adapters})
    run = training_run(technique, stdlib_model, damaged, tmp_path)
    technique.apply(run)
    noted: Any = run.results["training"]
    print(f"KL {noted['start']['kl']:.3f} -> {noted['best']['kl']:.3f} nats a token")
    assert noted["best"]["kl"] < 0.95 * noted["start"]["kl"]
    before, after = (load_file(weight_files(folder)[0]) for folder in (damaged, run.out))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("norm" in name for name in moved)
    assert any("_proj" in name for name in moved) == adapters
    assert not any("embed" in name for name in moved)


def _cross_entropy(folder: Path, windows_folder: Path) -> float:
    """Nats a token of the validation windows, by the written model itself."""
    windows = Windows(windows_folder)
    batch = windows.read(range(windows.facts.training, windows.facts.windows))
    assert (batch.positions_BT[:, 1:] != 0).sum() > 0
    from optcore.streaming.decoder import Decoder

    model = Decoder(folder).load_all()
    with torch.no_grad():
        logits = model(input_ids=batch.tokens_BT, position_ids=batch.positions_BT, use_cache=False).logits
    nats_BT = -logits.log_softmax(-1).gather(-1, batch.next_BT[..., None]).squeeze(-1)
    return float(nats_BT[batch.predicts_BT].mean())


def test_a_smaller_student_learns_from_the_source(small: Path, stdlib_model: Path, tmp_path: Path) -> None:
    technique = Distill.model_validate({**LEARNS, "steps": 20, "learning_rate": 3e-3, "student": {"path": str(small)}})
    assert technique.teacher == "source"
    run = training_run(technique, stdlib_model, small, tmp_path)
    technique.apply(run)
    noted: Any = run.results["training"]
    print(f"{noted['start']['kl']:.3f} -> {noted['best']['kl']:.3f} nats a token to the teacher")
    assert noted["best"]["kl"] < noted["start"]["kl"] - 1
    assert (run.out / "config.json").read_text() == (small / "config.json").read_text()
    assert logits_of(run.out, TOKENS_BT).shape[-1] == 2048


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Mixtral", "GptOss", "Bert"])
@pytest.mark.usefixtures("keeps_the_last")
def test_what_is_written_is_what_was_trained(
    family: str, tiny_model: MakeModel, tmp_path: Path, as_written: AsWritten
) -> None:
    """Tied embeddings, experts one by one and all in one transposed tensor, an encoder; in several files."""
    source = tiny_model(family, max_shard_size="300KB")
    technique = Finetune.model_validate({**SHORT, "steps": 2, "learning_rate": 0.01, "data": RANDOM, "warmup": 0})
    seen = as_written(TOKENS_BT)
    run = training_run(technique, source, source, tmp_path)
    technique.apply(run)
    names = {name for path in weight_files(source) for name in read_header(path)}
    written = {name: tensor for path in weight_files(run.out) for name, tensor in load_file(path).items()}
    assert written.keys() == names
    trained = {name: value.detach().bfloat16().float() for name, value in seen[0][0].model.named_parameters()}
    reread = dict(Student(run.out).model.named_parameters())
    assert trained.keys() == reread.keys()
    assert all(torch.equal(trained[name], reread[name]) for name in trained)
    before = dict(Student(source).model.named_parameters())
    moved = [name for name in trained if not torch.equal(trained[name], before[name])]
    print(f"{family}: {len(moved)} of {len(before)} parameters moved, {len(written)} tensors")
    assert len(moved) > 0.6 * len(before)


@pytest.mark.usefixtures("keeps_the_last")
def test_what_was_not_trained_is_bit_for_bit_what_it_was(small: Path, tmp_path: Path) -> None:
    lora = {"modules": ["re:.*q_proj$"], "rank": 4}
    settings = {"scope": "lora", "lora": lora, "steps": 2, "learning_rate": 0.05, "data": RANDOM, "warmup": 0}
    technique = Distill.model_validate({**SHORT, **settings, "losses": [{"kind": "reverse_kl"}]})
    teacher = tmp_path / "teacher"
    shutil.copytree(small, teacher)
    tensors = load_file(teacher / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in tensors.items()}, teacher / "model.safetensors")
    run = training_run(technique, teacher, small, tmp_path)
    technique.apply(run)
    before, after = load_file(small / "model.safetensors"), load_file(run.out / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("q_proj.weight")}
    assert all(after[name].dtype == before[name].dtype for name in before)


def test_a_trained_model_can_be_quantized(small: Path, tmp_path: Path) -> None:
    technique = Finetune.model_validate({**SHORT, "steps": 1, "data": RANDOM})
    run = training_run(technique, small, small, tmp_path)
    technique.apply(run)
    plain("int8").apply(run_of(run.out, run.out, tmp_path / "quantized"))
    assert (tmp_path / "quantized" / "quantization.json").exists()


def test_on_policy_text_is_what_the_student_goes_on_to_say(small: Path) -> None:
    technique = Distill.model_validate({"on_policy": 0.5, "data": {"prompt_tokens": 5}})
    student = Student(small)
    student.recompute_layers()
    policy = OnPolicy(student, technique, seed=7)
    generator = torch.Generator().manual_seed(1)
    given = Batch(torch.randint(0, 2048, (4, 20), generator=generator), torch.full((4, 20), 2, dtype=torch.uint8))
    windows, own = [3, 9, 4, 1], policy.own([3, 9, 4, 1])
    assert own == {3, 9}
    assert OnPolicy(student, Distill(on_policy=0.01), seed=7).own(windows) == {3}
    written = policy.written(given, windows, own, step=2)
    again, later = policy.written(given, windows, own, step=2), policy.written(given, windows, own, step=3)
    assert torch.equal(written.tokens_BT, again.tokens_BT)
    assert not torch.equal(written.tokens_BT, later.tokens_BT)
    assert torch.equal(written.tokens_BT[2:], given.tokens_BT[2:])
    assert torch.equal(written.tokens_BT[:, :5], given.tokens_BT[:, :5])
    assert not torch.equal(written.tokens_BT[:2], given.tokens_BT[:2])
    assert torch.equal(written.flags_BT, policy.marked(given, windows, own).flags_BT)
    assert written.predicts_BT.sum(1).tolist() == [15, 15, 19, 19]  # the prompt's own tokens are not learned
    likeliest = OnPolicy(student, Distill.model_validate({"on_policy": 1, "data": {"temperature": 0}}), seed=7)
    said = likeliest.written(given, windows, likeliest.own(windows), step=0).tokens_BT
    plainly = continued(Student(small).model, given.tokens_BT[:, :16], 20, 0, generator)
    assert torch.equal(said, plainly)


def test_no_more_logits_are_made_than_are_drawn_from(small: Path) -> None:
    """Those of a whole prompt may be larger than the model."""
    model: Any = Student(small).model
    rows: list[int] = []
    model.lm_head.register_forward_hook(lambda _, __, out: rows.append(out.shape[1]))
    continued(model, torch.arange(3, 19).view(1, 16), 20, 0, torch.Generator())
    assert rows == [1] * 4


def test_on_policy_distillation_trains_on_its_own_text_and_goes_on_exactly(
    small: Path, stdlib_model: Path, tmp_path: Path
) -> None:
    settings = {**SHORT, "steps": 6, "learning_rate": 3e-3, "on_policy": 1.0, "sequence_length": 24, "save_every": 2}
    technique = Distill.model_validate({**settings, "data": {**RANDOM, "prompt_tokens": 4}})
    losses = []
    for name, killed in (("whole", False), ("killed", True)):
        run = training_run(technique, stdlib_model, small, tmp_path / name)
        if killed:
            with pytest.raises(Killed), ending_at(run, 3):
                technique.apply(run)
        technique.apply(run)
        losses.append(_losses(run))
    off_policy = technique.model_copy(update={"on_policy": 0.0})
    run = training_run(off_policy, stdlib_model, small, tmp_path / "off")
    off_policy.apply(run)
    assert losses[0] == losses[1]
    assert losses[0][0] != _losses(run)[0]
    assert losses[0][-1][1] < losses[0][0][1]


def test_a_killed_run_knows_how_often_each_parameter_moved(small: Path, stdlib_model: Path, tmp_path: Path) -> None:
    """The upper layer comes to have a gradient at half of the steps, shortly before the checkpoint."""
    settings = {**SHORT, "steps": 6, "learning_rate": 3e-3, "sequence_length": 24, "save_every": 4, "data": RANDOM}
    losses = [{"kind": "hidden_mse", "progressive": True}]
    technique = Distill.model_validate({**settings, "losses": losses})
    curves, written = [], []
    for name, killed in (("whole", False), ("killed", True)):
        run = training_run(technique, stdlib_model, small, tmp_path / name)
        if killed:
            with pytest.raises(Killed), ending_at(run, 5):
                technique.apply(run)
        technique.apply(run)
        curves.append(_losses(run))
        written.append(load_file(run.out / "model.safetensors"))
    assert curves[0] == curves[1]
    assert all(torch.equal(tensor, written[1][name]) for name, tensor in written[0].items())


def _losses(run: Run) -> list[list[float]]:
    series: Any = run.results["series"]
    return next(list(curve["points"]) for curve in series if curve["name"].endswith("-loss"))


def test_an_encoder_writes_no_text(tiny_model: MakeModel) -> None:
    with pytest.raises(RecipeError, match="an encoder cannot write text"):
        OnPolicy(Student(tiny_model("Bert")), Distill(on_policy=0.5), seed=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"on_policy": 0.5, "teacher_top_k": 8}, "knows no answers"),
        ({"teacher": "self"}, "nothing to learn from itself"),
        ({"losses": [{"kind": "cross_entropy"}]}, "none of `losses` looks at a teacher"),
    ],
)
def test_a_distillation_without_answers_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Distill.model_validate(settings)


def test_training_stands_before_quantization() -> None:
    ptq, finetune = {"technique": "ptq", "scheme": "int4"}, {"technique": "finetune", "scope": "lora"}
    distill = {"technique": "distill", "student": {"id": "org/small"}}
    recipe = recipe_from({"model": {"id": "org/model"}, "chain": [finetune, distill, ptq]})
    check(recipe)
    assert set(recipe.chain[1].models) == {"student"}
    with pytest.raises(RecipeError, match="needs a model that is dense"):
        check(recipe_from({"model": {"id": "org/model"}, "chain": [ptq, finetune]}))
