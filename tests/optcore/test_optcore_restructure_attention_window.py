"""A window with sinks: where it is written, which layers get it, and what lies beyond it."""

import json
from pathlib import Path

import pytest
import torch
from fixtures.exporting import run_of, streamed_logits
from fixtures.tiny_models import MakeModel, make_model
from transformers import AutoModelForCausalLM

from optcore.conditional import Window, load_conditional
from optcore.errors import RecipeError
from optcore.evaluate import Fidelity, LongContext
from optcore.evaluate.fidelity_stream import compare
from optcore.evaluate.long_context_stream import position_ranges, repeated
from optcore.fetching import fetch_work
from optcore.measures import evaluators
from optcore.plan import check
from optcore.recipe import recipe_from
from optcore.restructure.attention_window import IN_CONFIG
from optcore.streaming.decoder import Decoder
from optcore.techniques import AttentionWindow, Prune

TOKENS_BT = torch.arange(4, 52).reshape(2, 24)


def test_a_window_as_long_as_the_text_is_full_attention(stdlib_model: Path, tmp_path: Path) -> None:
    run = run_of(stdlib_model, stdlib_model, tmp_path / "out")
    AttentionWindow(window=64, sinks=0).apply(run)
    result = compare(run_of(stdlib_model, run.out, tmp_path / "measured"), 2, 64)[0]["result"]
    assert (result.kl, result.agreement) == (0.0, 1.0)


def test_every_layer_attends_as_a_naive_attention_with_that_mask(stdlib_model: Path, tmp_path: Path) -> None:
    run = run_of(stdlib_model, stdlib_model, tmp_path / "out")
    AttentionWindow(window=4, sinks=2).apply(run)
    model = AutoModelForCausalLM.from_pretrained(stdlib_model, dtype=torch.float32, attn_implementation="eager")
    places_T = range(24)
    seen = [[key <= query and (query - key < 4 or key < 2) for key in places_T] for query in places_T]
    added = torch.zeros(24, 24).masked_fill(~torch.tensor(seen), -1e30)[None, None]
    with torch.no_grad():
        expected = model(TOKENS_BT, attention_mask=added).logits  # a mask of four dimensions is taken as it is
    torch.testing.assert_close(streamed_logits(Decoder(run.out), TOKENS_BT), expected, rtol=1e-4, atol=1e-4)
    assert run.results["attention_window"]["accelerated_by"].startswith("nothing")  # type: ignore[index]


def test_without_sinks_a_configuration_that_knows_windows_says_it(stdlib_model: Path, tmp_path: Path) -> None:
    source = make_model("Mistral", {"sliding_window": None}, _made(tmp_path / "model"), stdlib_model)
    plain, sunk = (run_of(source, source, tmp_path / name) for name in ("plain", "sunk"))
    AttentionWindow(window=4, sinks=0).apply(plain)
    assert load_conditional(plain.out) is None
    assert json.loads((plain.out / "config.json").read_text())["sliding_window"] == 4
    assert plain.results["attention_window"]["accelerated_by"] == IN_CONFIG  # type: ignore[index]
    model = AutoModelForCausalLM.from_pretrained(plain.out, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(
            model(TOKENS_BT).logits, streamed_logits(Decoder(plain.out), TOKENS_BT), rtol=1e-4, atol=1e-4
        )
    assert compare(run_of(source, plain.out, tmp_path / "m"), 1, 64)[0]["result"].mean_kl > 0
    AttentionWindow(window=4, sinks=2).apply(sunk)
    assert load_conditional(sunk.out).window == Window(tokens=4, sinks=2, layers=(0, 1))  # type: ignore[union-attr]
    assert json.loads((sunk.out / "config.json").read_text())["sliding_window"] is None


def test_layers_with_a_window_or_state_of_their_own_are_left_alone(tiny_model: MakeModel, tmp_path: Path) -> None:
    for family in ("GptOss", "Qwen3Next"):
        source = tiny_model(family)
        run = run_of(source, source, tmp_path / family)
        AttentionWindow(window=4).apply(run)
        assert load_conditional(run.out).window.layers == (1,)  # type: ignore[union-attr]
        before, after = (Decoder(folder).embed(TOKENS_BT).arguments for folder in (source, run.out))
        own, theirs = after[0].get("attention_mask"), before[0].get("attention_mask")
        assert own is theirs is None or torch.equal(own, theirs)  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "layers", "said"), [
    ("Mistral", "all", "no layer"), ("GptOss", (0,), "layers 0 have no full"), ("Llama", (2,), "layers 2 have"),
])  # fmt: skip
def test_layers_that_cannot_have_a_window_are_refused(
    family: str, layers: object, said: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    run = run_of(tiny_model(family), tiny_model(family), tmp_path / "out")
    with pytest.raises(RecipeError, match=said):
        AttentionWindow.model_validate({"window": 4, "layers": layers}).apply(run)
    assert not list(run.out.glob("*.safetensors"))


def test_the_rival_holds_as_many_keys_without_sinks() -> None:
    assert AttentionWindow(window=60, sinks=4).rival == AttentionWindow(window=64, sinks=0, compare=False)
    assert AttentionWindow(window=64, sinks=0).rival is None


def test_beyond_the_window_is_measured_though_nobody_asked(stdlib_model: Path, tmp_path: Path) -> None:
    recipe = recipe_from(
        {
            "model": {"path": str(stdlib_model)},
            "calibration": {"dataset": "python-stdlib", "samples": 2, "sequence_length": 32},
            "chain": [{"technique": "attention_window", "window": 48}],
            "evaluate": [{"evaluator": "fidelity", "sequence_length": 64}],
            "target": {"format": "dense"},
        }
    )
    check(recipe)
    assert evaluators(recipe) == (Fidelity(sequence_length=64), LongContext(window=48))
    assert fetch_work(recipe).evaluations == (64, 4096)
    later = recipe.model_copy(update={"chain": (*recipe.chain, Prune(depth=1))})
    with pytest.raises(RecipeError, match="the attention window would be lost"):
        check(later)
    run = run_of(stdlib_model, stdlib_model, tmp_path / "out")
    AttentionWindow(window=48).apply(run)
    measuring = run_of(stdlib_model, run.out, tmp_path / "measured")
    rows = {row.name: row for row in LongContext(window=48, samples=4, sequence_length=160).measure(measuring)}
    near, beyond, far = (rows[f"mean_kl_{name}"].result for name in ("within", "beyond", "far_beyond"))
    assert near == pytest.approx(0, abs=1e-6)
    assert beyond > 1e-4  # type: ignore[operator]
    assert far > 1e-4  # type: ignore[operator]
    assert rows["perplexity_within"].source == pytest.approx(rows["perplexity_within"].result, rel=1e-5)
    assert rows["copy_loss_beyond"].title == "Copying from 128 tokens back, loss"
    assert rows["copy_loss_within"].result != rows["copy_loss_beyond"].result


def test_texts_that_do_not_reach_beyond_say_so(stdlib_model: Path, tmp_path: Path) -> None:
    run = run_of(stdlib_model, stdlib_model, tmp_path / "out")
    names = {row.name for row in LongContext(window=64, samples=2, sequence_length=64).measure(run)}
    assert names == {"mean_kl_within", "perplexity_within", "copy_accuracy_within", "copy_loss_within"}
    assert "nothing beyond a window of 64" in run.results["notices"][0]  # type: ignore[index]


def test_ranges_hold_every_predicted_token_once() -> None:
    found = position_ranges(100, 30)
    assert [place for _, positions in found for place in positions] == list(range(99))
    assert [name for name, _ in found] == ["within", "beyond", "far_beyond"]
    assert [name for name, _ in position_ranges(50, 30)] == ["within", "beyond"]


def test_a_span_is_repeated_at_its_distance() -> None:
    made_ST = repeated(torch.zeros(1, 12, dtype=torch.long), torch.tensor([[7, 8, 9]]), 5)
    assert made_ST.tolist() == [[0, 0, 0, 0, 7, 8, 9, 0, 0, 7, 8, 9]]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
