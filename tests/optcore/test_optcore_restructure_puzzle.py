"""Puzzle: the choice, the least-squares refit, and checkpoints that are the old model with parts of it masked."""

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import ENCODERS, MakeModel
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from optcore.algorithms.block_choice import equal, least
from optcore.algorithms.refit import refitted
from optcore.errors import RecipeError
from optcore.puzzle import DESCRIPTION, Structure
from optcore.references import Calibration
from optcore.restructure.puzzle_library import Variant, build
from optcore.restructure.puzzle_parts import find_parts
from optcore.run import Run
from optcore.sparsity import load_sparsity
from optcore.streaming.decoder import Decoder
from optcore.techniques import Puzzle

TEXT = Calibration(dataset="python-stdlib", samples=4, sequence_length=32)
FAMILIES = ("Phi3", "Gemma2", "Mixtral", "GptOss", "NemotronH", "Qwen3Next", "OPT", "Bert")


class Priced(NamedTuple):
    price: int

    def cost(self, share: float) -> int:
        return round(self.price * share)


def test_the_choice_is_the_best_of_all() -> None:
    shares = (1.0, 0.75, 0.5, 0.0)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        parts = [Priced(int(torch.randint(40, 400, (), generator=generator))) for _ in range(3)]
        scores = [dict(zip(shares, torch.rand(4, generator=generator).tolist(), strict=True)) for _ in parts]
        total = sum(part.price for part in parts)
        for budget in (total, total * 3 // 4, total // 2, total // 5, 0):
            chosen = least(parts, scores, budget)
            allowed = [
                sum(of_part[share] for of_part, share in zip(scores, each, strict=True))
                for each in product(shares, repeat=3)
                if sum(part.cost(share) for part, share in zip(parts, each, strict=True)) <= budget
            ]
            assert sum(part.cost(share) for part, share in zip(parts, chosen, strict=True)) <= budget
            assert sum(of_part[share] for of_part, share in zip(scores, chosen, strict=True)) == min(allowed)


def test_a_budget_below_the_cheapest_names_what_they_cost() -> None:
    with pytest.raises(RecipeError, match="the budget is 59, and the cheapest options cost 60"):
        least([Priced(40), Priced(80)], [{1: 0.0, 0.5: 1.0}] * 2, 59)


def test_equal_shares_are_the_largest_that_fit_and_attention_goes_last() -> None:
    ffn, attention = [Priced(80)] * 2, [Priced(30)] * 2
    assert equal(ffn, attention, 8, 220) == (1.0, 2)
    assert equal(ffn, attention, 8, 160) == (5 / 8, 2)
    assert equal(ffn, attention, 8, 60) == (0.0, 2)
    assert equal(ffn, attention, 8, 59) == (0.0, 1)
    assert equal(ffn, attention, 8, 0) == (0.0, 0)


def test_refit_is_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    x_NK = torch.randn(200, 12, generator=generator, dtype=torch.float64) @ mixing
    weight_OK = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    kept = torch.tensor([0, 3, 4, 7, 10])
    gram_KK = x_NK.mT @ x_NK
    plain = torch.linalg.lstsq(x_NK[:, kept], x_NK @ weight_OK.mT).solution.mT
    torch.testing.assert_close(refitted(weight_OK, gram_KK, kept, 1e-14)[:, kept], plain, rtol=1e-9, atol=1e-9)

    ridge = 0.1 * gram_KK[kept][:, kept].diagonal().mean()
    left = x_NK @ weight_OK.mT - x_NK[:, kept] @ weight_OK[:, kept].mT
    rows = torch.cat([x_NK[:, kept], ridge.sqrt() * torch.eye(5, dtype=torch.float64)])
    change = torch.linalg.lstsq(rows, torch.cat([left, left.new_zeros(5, 5)])).solution.mT
    found = refitted(weight_OK, gram_KK, kept, 0.1)
    torch.testing.assert_close(found[:, kept], weight_OK[:, kept] + change, rtol=1e-9, atol=1e-9)
    gone = [column for column in range(12) if column not in kept.tolist()]
    assert not found[:, gone].any()
    assert torch.equal(refitted(weight_OK, gram_KK, torch.arange(12), 0.1), weight_OK)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_lose_parts_and_their_zeros_are_named(family: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    source = tiny_model(family)
    run = _run(source, tmp_path / "out")
    Puzzle(target={"params": 0.5}, score="local", score_samples=2).apply(run)
    structure = _structure(run.out)
    found, model = run.results["puzzle"], _loaded(run.out, family)
    assert isinstance(found, dict)
    assert found["layers_after"] <= found["layers_before"] // 2
    assert model(torch.arange(4, 20)[None]).logits.isfinite().all()
    sparse = load_sparsity(run.out)
    assert (sparse is not None) == structure.zeroed
    if sparse:
        before, after = (load_file(folder / "model.safetensors") for folder in (source, run.out))
        if not structure.dropped:
            assert {name for name in before if not torch.equal(before[name], after[name])} <= set(sparse.tensors)
        counted = {name: (int(after[name].count_nonzero()), after[name].numel()) for name in sparse.tensors}
        assert all(nonzero < total for nonzero, total in counted.values())
        assert counted == {name: (one.nonzero, one.total) for name, one in sparse.tensors.items()}


def test_the_zeroed_model_is_the_old_one_without_its_parts(stdlib_model: Path, tmp_path: Path) -> None:
    run = _run(stdlib_model, tmp_path / "out")
    Puzzle(target={"params": 0.6}, score="local", refit=False).apply(run)
    structure = _structure(run.out)
    assert structure.zeroed
    model, written = _loaded(stdlib_model, "Llama"), _loaded(run.out, "Llama")
    layers = [model.model.layers[layer.was] for layer in structure.layers]
    for layer, made, said in zip(layers, written.model.layers, structure.layers, strict=True):
        if not said.attention:
            layer.self_attn.forward = lambda hidden_states, **_: (torch.zeros_like(hidden_states), None)
        active_P = made.mlp.down_proj.weight.any(0)
        assert int(active_P.sum()) == said.ffn
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, given, active_P=active_P: given[0] * active_P)
    model.model.layers = torch.nn.ModuleList(layers)
    model.config.num_hidden_layers = len(layers)
    tokens_BT = torch.arange(4, 36)[None]
    expected, found = (each(tokens_BT, use_cache=False).logits for each in (model, written))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_scores_by_kl_are_of_the_model_with_one_part_replaced(stdlib_model: Path, tmp_path: Path) -> None:
    run = _run(stdlib_model, tmp_path / "out")
    decoder = Decoder(stdlib_model, dtype=torch.float32)
    technique = Puzzle(target={"params": 0.5}, ffn=(1, 0.5), score_samples=3)
    parts = find_parts(decoder, technique, run.scratch)
    library, scores = build(run, decoder, parts, {part: part.shares for part in parts.parts}, technique)

    from optcore.calibration.text import Texts

    windows_ST = Texts(stdlib_model, TEXT, ()).calibration_windows(10**6)[:3]
    model = _loaded(stdlib_model, "Llama")
    expected = model(windows_ST).logits.double().log_softmax(-1)
    for variant in (Variant(parts.of(1)[0], 0), Variant(parts.of(4)[1], 0.5), Variant(parts.of(5)[1], 0.5)):
        index = variant.part.index
        with decoder.layer(index) as layer:
            changed = library.parameters(variant, layer)
        own = model.model.layers[index]
        kept = {path: own.get_parameter(path).clone() for path in changed}
        for path, value in changed.items():
            own.get_parameter(path).copy_(value)
        found = model(windows_ST).logits.double().log_softmax(-1)
        for path, value in kept.items():
            own.get_parameter(path).copy_(value)
        kl = (expected.exp() * (expected - found)).sum(-1).mean().item()
        assert scores[variant] == pytest.approx(kl, rel=1e-3, abs=1e-7)


def test_a_refit_brings_layers_nearer(stdlib_model: Path, tmp_path: Path) -> None:
    scores = []
    for number, refit in enumerate((True, False)):
        run = _run(stdlib_model, tmp_path / str(number))
        Puzzle(target={"params": 0.8}, ffn=(1, 0.5), attention=False, score="local", refit=refit).apply(run)
        found = run.results["puzzle"]
        assert isinstance(found, dict)
        scores.append([one["local"] for one in found["scores"]])
    assert all(fitted < sliced for fitted, sliced in zip(*scores, strict=True))


def test_all_of_them_is_the_same_file(stdlib_model: Path, tmp_path: Path) -> None:
    run = _run(stdlib_model, tmp_path / "out")
    Puzzle(target={"params": 1}).apply(run)
    before, after = (folder / "model.safetensors" for folder in (stdlib_model, run.out))
    assert before.read_bytes() == after.read_bytes()
    assert Puzzle(target={"params": 1}).rival is None


def test_equal_layers_are_really_narrower(stdlib_model: Path, tmp_path: Path) -> None:
    run = _run(stdlib_model, tmp_path / "out")
    Puzzle(target={"params": 0.75}, choice="uniform").apply(run)
    structure, size = _structure(run.out), json.loads((run.out / "config.json").read_text())["intermediate_size"]
    assert not structure.zeroed
    assert load_sparsity(run.out) is None
    assert {layer.ffn for layer in structure.layers} == {size}
    model = _loaded(run.out, "Llama")
    found = run.results["puzzle"]
    assert isinstance(found, dict)
    assert sum(one.numel() for one in model.model.layers.parameters()) == found["layers_after"]
    assert found["layers_after"] <= 0.75 * found["layers_before"] < found["layers_after"] * 1.05


def test_a_layer_that_loses_everything_is_gone(stdlib_model: Path, tmp_path: Path) -> None:
    idle = tmp_path / "idle"
    shutil.copytree(stdlib_model, idle)
    tensors = load_file(idle / "model.safetensors")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.2.{name}.weight"].zero_()
    (idle / "model.safetensors").unlink()
    save_file(tensors, idle / "model.safetensors", metadata={"format": "pt"})
    run = _run(idle, tmp_path / "out")
    Puzzle(target={"params": 0.84}).apply(run)
    structure = _structure(run.out)
    assert structure.dropped == (2,)
    assert not structure.zeroed
    model, shorter = _loaded(idle, "Llama"), _loaded(run.out, "Llama")
    tokens_BT = torch.arange(4, 20)[None]
    assert torch.equal(shorter(tokens_BT).logits, model(tokens_BT).logits)
    found = run.results["puzzle"]
    assert isinstance(found, dict)
    assert sum(one.numel() for one in shorter.model.layers.parameters()) == found["layers_after"]


def test_bytes_are_counted_as_stored(stdlib_model: Path, tmp_path: Path) -> None:
    decoder = Decoder(stdlib_model, dtype=torch.float32)
    by_number, by_bytes = (
        find_parts(decoder, Puzzle(target=target), tmp_path) for target in ({"params": 0.5}, {"bytes": 10**6})
    )
    width = decoder.reader.dtype(decoder.names.sources["model.layers.0.mlp.down_proj.weight"].stored).itemsize
    assert by_bytes.total == by_number.total * width
    assert by_bytes.smallest == by_number.smallest * width
    inside = [one.numel() for name, one in decoder.model.named_parameters() if ".layers." in name]
    assert by_number.total == sum(inside)


def test_what_cannot_be_is_refused_before_any_text_is_read(stdlib_model: Path, tmp_path: Path) -> None:
    run = _run(stdlib_model, tmp_path / "out")
    run.source = tmp_path / "nowhere"
    with pytest.raises(RecipeError, match=r"cannot be cut to 1000000: the least .* is \d+ \(\d\d\.\d%\)"):
        Puzzle(target={"params": 1_000_000}, attention=False, ffn=(1, 0.5)).apply(run)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target": {}}, "give one of `params`"),
        ({"target": {"params": 0.5, "bytes": 9}}, "give one of `params`"),
        ({"target": {"params": 0.5}, "ffn": [0.5]}, "1 among them"),
        ({"target": {"params": 0.5}, "ffn": [1], "attention": False}, "nothing may go"),
    ],
)
def test_what_makes_no_sense_is_no_recipe(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Puzzle.model_validate(settings)


def _run(source: Path, out: Path) -> Run:
    return run_of(source, source, out, calibration=TEXT)


def _structure(folder: Path) -> Structure:
    return Structure.model_validate_json((folder / DESCRIPTION).read_text())


def _loaded(folder: Path, family: str) -> Any:
    auto = AutoModelForMaskedLM if family in ENCODERS else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
