"""Heads that go: with their keys and values where a configuration can say it, as zeros where it cannot."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fixtures.classifiers import MakeClassifier, write_sentences
from fixtures.exporting import run_of
from fixtures.package_texts import trained_on
from fixtures.tiny_models import ENCODERS, EXTRAS, MakeModel, make_model
from pydantic import ValidationError
from safetensors.torch import load_file

from optcore.errors import RecipeError
from optcore.plan import check
from optcore.recipe import recipe_from
from optcore.references import Calibration
from optcore.run import Run
from optcore.sparsity import load_sparsity
from optcore.techniques import Finetune, Prune

TEXT = Calibration(dataset="python-stdlib", samples=4, sequence_length=32)
TOKENS_BT = torch.arange(4, 36).reshape(2, 16)
HALF = {"heads": {"ratio": 0.5}}
ZEROS = {**HALF, "masked": True}
OWN_KEYS = {"num_key_value_heads": 4}


@pytest.mark.parametrize(
    ("family", "extras"),
    [
        ("Llama", OWN_KEYS),
        ("Qwen2", OWN_KEYS),  # biases
        ("Phi3", OWN_KEYS),  # queries, keys and values in one matrix
        ("GptOss", OWN_KEYS),  # sinks
        ("DeepseekV3", {}),  # latent keys and values, of which each head makes its own
    ],
)
def test_heads_take_their_keys_and_values_with_them(
    family: str, extras: dict[str, Any], stdlib_model: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    make_model(family, {**EXTRAS[family], **extras}, source, stdlib_model)
    run = _pruned(source, tmp_path, HALF)
    config = json.loads((run.out / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 2)
    assert load_sparsity(run.out) is None
    model = _loaded(source)
    _mask(model, run.results["width"]["kept"])  # type: ignore[index]
    _assert_same(run.out, model)


@pytest.mark.parametrize(
    ("family", "weights"),
    [
        ("Bert", 4),
        ("Roberta", 4),
        ("ModernBert", 2),  # queries, keys and values after each other in one matrix
        ("Bloom", 2),  # and head by head
        ("OPT", 4),
        ("DeepseekV3", 3),
        ("GptOss", 4),  # no function of torch's computes its attention
    ],
)
def test_zeros_are_the_model_without_those_heads(
    family: str, weights: int, tiny_model: MakeModel, tmp_path: Path
) -> None:
    source = tiny_model(family)
    run = _pruned(source, tmp_path, ZEROS)
    kept: dict[str, list[int]] = run.results["heads"]["kept"]  # type: ignore[index]
    model = _loaded(source)
    _mask(model, kept)
    _assert_same(run.out, model)
    described = load_sparsity(run.out)
    assert described
    assert len(described.tensors) == 2 * weights
    assert {one.total - 2 * one.nonzero for one in described.tensors.values()} == {0}
    assert described.accelerated_by.startswith("nothing")
    before, after = (load_file(folder / "model.safetensors") for folder in (source, run.out))
    assert {name: tensor.shape for name, tensor in after.items()} == {name: one.shape for name, one in before.items()}
    assert all(((after[name] == before[name]) | (after[name] == 0)).all() for name in before)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (source, run.out)]
    assert configs[0] == configs[1]


def test_a_key_that_a_head_that_stays_reads_stays(tiny_model: MakeModel, tmp_path: Path) -> None:
    run = _pruned(tiny_model("Llama"), tmp_path, {"heads": {"size": 3}, "masked": True})
    described = load_sparsity(run.out)
    assert described
    assert {name.split(".")[-2] for name in described.tensors} == {"q_proj", "o_proj"}


def test_biases_of_removed_heads_are_zeros_too(tiny_model: MakeModel, tmp_path: Path) -> None:
    run = _pruned(tiny_model("Bert"), tmp_path, ZEROS)
    tensors = load_file(run.out / "model.safetensors")
    for name, tensor in tensors.items():
        if ".attention.self." in name and name.endswith(".bias"):
            rows_N = tensors[name.removesuffix("bias") + "weight"].any(1)
            assert torch.equal(tensor != 0, rows_N)
            assert int(rows_N.sum()) == 64


def test_biases_after_them_take_what_they_gave_in_the_mean(tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tiny_model("Bert")
    plain, made_up = (
        _pruned(source, tmp_path / str(number), {**ZEROS, "compensate": number == 1}) for number in (0, 1)
    )
    before, after = (load_file(run.out / "model.safetensors") for run in (plain, made_up))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"bert.encoder.layer.{index}.attention.output.dense.bias" for index in (0, 1)}


def test_the_smallest_head_goes_and_chance_takes_another(tiny_classifier: MakeClassifier, tmp_path: Path) -> None:
    source = tiny_classifier("DistilBert")
    run = _pruned(source, tmp_path, ZEROS)
    kept: dict[str, list[int]] = run.results["heads"]["kept"]  # type: ignore[index]
    assert kept == _larger(source)
    drawn = {str(seed): _drawn(source, tmp_path / str(seed), seed) for seed in range(4)}
    assert len({str(heads) for heads in drawn.values()}) > 1


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert"])
def test_a_classifier_is_fine_tuned_and_its_zeros_stay(
    family: str, tiny_classifier: MakeClassifier, tmp_path: Path
) -> None:
    source, file = tiny_classifier(family), write_sentences(tmp_path / "sentences.jsonl")
    sizes = {"depth": 1, "ends": True, "ffn": {"ratio": 0.5}}
    pruned = _pruned(source, tmp_path, {**ZEROS, **sizes})
    settings = {"steps": 6, "batch": 8, "micro_batch": 8, "sequence_length": 16, "learning_rate": 1e-3}
    data = {"kind": "labelled", "path": str(file)}
    technique = Finetune.model_validate({**settings, "validation": {"samples": 16}, "data": data})
    run = trained_on(technique, source, pruned.out, tmp_path / "tuned", file)
    before, after = (load_file(folder / "model.safetensors") for folder in (pruned.out, run.out))
    described = load_sparsity(run.out)
    assert described
    assert len(described.tensors) == 4
    for name, tensor in before.items():
        is_attention = "attention" in name and "LayerNorm" not in name and "sa_layer" not in name
        assert not (is_attention and ((tensor == 0) & (after[name] != 0)).any()), name
    assert all(not torch.equal(before[name], after[name]) for name in described.tensors)
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(run.out)
    assert model.config.num_hidden_layers == 1
    assert model(input_ids=torch.arange(4, 12)[None]).logits.shape == (1, 3)


@pytest.mark.parametrize(
    ("family", "settings", "said"),
    [
        ("Bert", HALF, "masked: true"),
        ("Bert", {"heads": {"size": 5}, "masked": True}, "choose at most 4"),
        ("Llama", {**ZEROS, "compensate": True}, "leave"),
    ],
)
def test_what_to_do_where_heads_cannot_go(
    family: str, settings: dict[str, Any], said: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    source = tiny_model(family)
    run = run_of(source, source, tmp_path / "out", calibration=TEXT)
    with pytest.raises(RecipeError) as caught:
        Prune.model_validate({**settings, "depth": 1, "ends": True}).apply(run)
    assert said in str(caught.value.remedy)
    assert not list(run.out.iterdir())


def test_zeros_of_nothing_are_no_recipe() -> None:
    with pytest.raises(ValidationError, match="none are cut"):
        Prune.model_validate({"depth": 1, "masked": True})


def test_what_would_fill_the_zeros_is_refused_after_it() -> None:
    document = {
        "model": {"id": "google-bert/bert-base-uncased"},
        "chain": [{"technique": "prune", **ZEROS}, {"technique": "ptq", "scheme": "int8"}],
    }
    with pytest.raises(RecipeError, match="the mask of zeros would be lost"):
        check(recipe_from(document))


def _pruned(source: Path, folder: Path, settings: dict[str, Any]) -> Run:
    run = run_of(source, source, folder / "out", calibration=TEXT)
    Prune.model_validate(settings).apply(run)
    return run


def _drawn(source: Path, folder: Path, seed: int) -> Any:
    run = run_of(source, source, folder / "out", calibration=TEXT)
    run.seed = seed
    Prune.model_validate({**ZEROS, "order": "random"}).apply(run)
    return run.results["heads"]["kept"]  # type: ignore[index]


def _loaded(folder: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder)
    is_encoder = any(config.architectures[0].startswith(family) for family in ENCODERS)
    auto = transformers.AutoModelForMaskedLM if is_encoder else transformers.AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


def _assert_same(folder: Path, model: Any) -> None:
    with torch.no_grad():
        expected, found = model(TOKENS_BT).logits, _loaded(folder)(TOKENS_BT).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def _mask(model: Any, kept: dict[str, list[int]]) -> None:
    """Zero what output projections are given of the other heads."""
    for path, heads in kept.items():
        linear = model.get_submodule(path)
        block = linear.in_features // model.config.num_attention_heads
        mask_K = torch.zeros(4).index_fill(0, torch.tensor(heads), 1).repeat_interleave(block)
        linear.register_forward_pre_hook(lambda _, args, mask_K=mask_K: (args[0] * mask_K,))


def _larger(source: Path) -> dict[str, list[int]]:
    """By output projection of a DistilBERT of two heads, the one whose mean norm over windows is larger."""
    from optcore.calibration.text import Texts

    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(source).eval()
    found: dict[str, list[int]] = {}

    def hook(path: str) -> Any:
        def record(_: Any, args: tuple[Any, ...]) -> None:
            norm_STP = args[0].double().unflatten(-1, (2, -1)).norm(dim=-1)
            found[path] = [int(norm_STP.mean(1).square().sum(0).argmax())]

        return record

    for path, module in model.named_modules():
        if path.endswith("out_lin"):
            module.register_forward_pre_hook(hook(path))
    with torch.no_grad():
        model(Texts(source, TEXT, ()).calibration_windows(40))
    return found
