"""Tokens that leave early: as a model that writes one token after another would let them, within the stated risk."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import run_of
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache

from optcore.conditional import load_conditional
from optcore.errors import BadCheckpoint, RecipeError
from optcore.evaluate.fidelity_stream import compare
from optcore.plan import check, stage_names
from optcore.recipe import recipe_from
from optcore.references import Calibration
from optcore.restructure import early_exit
from optcore.restructure.exit_walk import Walk, said_at, walk
from optcore.run import Run
from optcore.streaming import exits
from optcore.streaming.decoder import Decoder
from optcore.streaming.exits import NEVER
from optcore.techniques import EarlyExit

TEXT = Calibration(dataset="python-stdlib", samples=64, sequence_length=12)


def test_a_walk_is_what_writing_token_after_token_gives(
    stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, depths, threshold = Decoder(stdlib_model), (2, 3, 5), 0.3
    tokens_ST = torch.arange(40, 88).view(2, 24)
    run = run_of(stdlib_model, stdlib_model, tmp_path)
    found = walk(run, decoder, tokens_ST, depths, threshold)
    expected = [_written(stdlib_model, tokens_ST[row], depths, threshold) for row in range(2)]
    assert torch.equal(found.computed_ST, torch.stack([one.computed_ST for one in expected]))
    assert torch.equal(found.likeliest_ST, torch.stack([one.likeliest_ST for one in expected]))
    assert len(found.computed_ST.unique()) > 2
    monkeypatch.setattr(exits, "LOGITS_tokens", 6)  # in pieces
    assert torch.equal(walk(run, decoder, tokens_ST, depths, threshold).computed_ST, found.computed_ST)


def test_the_document_makes_evaluation_the_same_walk(stdlib_model: Path, tmp_path: Path) -> None:
    run = _applied({"threshold": 0.1, "exits": [3, 4]}, stdlib_model, tmp_path / "out")
    document = load_conditional(run.out)
    assert document
    assert document.early_exit
    assert (document.early_exit.layers, document.early_exit.threshold) == ((3, 4), 0.1)
    measuring = run_of(stdlib_model, run.out, tmp_path / "measured", calibration=TEXT)
    measured = compare(measuring, 8, 16)[0]["result"]

    from optcore.calibration.text import Texts

    tokens_ST = Texts(stdlib_model, TEXT, ()).evaluation_windows(8, 16, 16)
    decoder = Decoder(stdlib_model)
    walked, full = walk(run, decoder, tokens_ST, (3, 4), 0.1), said_at(run, decoder, tokens_ST)[-1]
    assert measured.agreements == int((walked.likeliest_ST == full)[:, :-1].sum()) < measured.tokens
    assert measured.mean_kl > 0


@pytest.mark.parametrize("settings", [{"threshold": 1.5}, {"risk": 0.0}])
def test_where_no_token_leaves_it_is_the_full_model(
    settings: dict[str, Any], stdlib_model: Path, tmp_path: Path
) -> None:
    run = _applied(settings, stdlib_model, tmp_path / "out")
    found: Any = run.results["early_exit"]
    assert (found["saved"], found["agreement"], found["mean_layers"]) == (0.0, 1.0, 6.0)
    before, after = (load_file(folder / "model.safetensors") for folder in (stdlib_model, run.out))
    assert all(torch.equal(before[name], after[name]) for name in before)
    measuring = run_of(stdlib_model, run.out, tmp_path / "measured", calibration=TEXT)
    found = compare(measuring, 2, 16)[0]
    assert found["result"] == found["source"]


def test_the_threshold_is_the_last_that_passes(
    stdlib_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_exit, "THRESHOLDS", (0.99, 0.9, 0.5, 0.0))
    run = _applied({"risk": 0.3, "exits": [4, 5]}, stdlib_model, tmp_path / "out")
    found: Any = run.results["early_exit"]
    tried = dict(found["tested"])
    assert list(tried) == [0.99, 0.9, 0.5, 0.0][: len(tried)]
    assert found["threshold"] in tried
    assert tried[found["threshold"]] <= 0.3
    assert 1 - found["agreement"] == pytest.approx(tried[found["threshold"]])
    assert found["mean_layers"] == pytest.approx(6 * (1 - found["saved"]))
    assert sum(found["share_after"].values()) == pytest.approx(1)
    assert sum(int(depth) * share for depth, share in found["share_after"].items()) == pytest.approx(
        found["mean_layers"]
    )
    assert 0 < found["head_checks"] <= 2
    assert found["draft"]["exit"] in (4, 5)
    assert found["acceptance"]["4"] < found["acceptance"]["5"] < 1


def test_too_little_text_for_the_risk_is_said(stdlib_model: Path, tmp_path: Path) -> None:
    run = _applied({"samples": 16}, stdlib_model, tmp_path / "out")
    assert run.results["early_exit"]["threshold"] == NEVER  # type: ignore[index]
    assert "cannot be tested on 16 windows of text, it takes at least 59" in str(run.results["notices"])


def test_the_rival_is_one_depth_of_no_less_compute_and_the_same_weights(stdlib_model: Path, tmp_path: Path) -> None:
    technique = EarlyExit(threshold=0.1, exits=(3, 4, 5))
    rival = technique.rival
    assert rival
    assert rival.rival is None
    assert (rival.steps, rival.policy) == (0, "fixed")
    run = _applied({"threshold": 0.1, "exits": [3, 4, 5]}, stdlib_model, tmp_path / "out")
    ours: Any = run.results["early_exit"]
    static = run_of(stdlib_model, run.out, tmp_path / "rival", calibration=TEXT)
    rival.apply(static)
    theirs: Any = static.results["early_exit"]
    assert ours["mean_layers"] <= theirs["mean_layers"] < ours["mean_layers"] + 1
    assert theirs["share_after"][str(int(theirs["mean_layers"]))] == 1.0
    assert (run.out / "model.safetensors").read_bytes() == (static.out / "model.safetensors").read_bytes()
    alone = _applied({"policy": "fixed", "threshold": 0.1, "exits": [3, 4, 5]}, stdlib_model, tmp_path / "alone")
    assert alone.results["early_exit"]["mean_layers"] == theirs["mean_layers"]  # type: ignore[index]


def test_what_trains_nothing_prepares_no_windows() -> None:
    names = stage_names(_recipe({"steps": 0}))
    assert names[1:4] == ("1-early_exit", "1-early_exit-rival", "1-early_exit-rival-measure")
    assert stage_names(_recipe({"steps": 1}))[1:3] == ("1-early_exit-data", "1-early_exit")


def test_nothing_may_follow_that_writes_other_weights() -> None:
    with pytest.raises(RecipeError, match="the test of the exits would be lost"):
        check(_recipe({}, {"technique": "ptq", "scheme": "int4"}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"exits": [3, 2]}, "the fewest first"),
        ({"losses": [{"kind": "hidden_mse"}]}, "hidden_mse"),
        ({"data": {"kind": "labelled"}}, "labelled texts"),
        ({"losses": [{"kind": "cross_entropy"}], "teacher_top_k": 8}, "teacher_top_k"),
        ({"processes": 2}, "one process"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EarlyExit.model_validate(settings)


def test_an_exit_behind_the_last_layer_is_refused(stdlib_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="after 6 of 6 layers"):
        _applied({"exits": [2, 6]}, stdlib_model, tmp_path / "out")
    run = _applied({"threshold": NEVER}, stdlib_model, tmp_path / "other")
    document = load_conditional(run.out)
    assert document
    assert document.early_exit
    other = document.early_exit.model_copy(update={"layers": (6,)})
    document.model_copy(update={"early_exit": other}).save(run.out)
    with pytest.raises(BadCheckpoint, match="an exit after layer 6"):
        Decoder(run.out)


def _applied(settings: dict[str, Any], model: Path, out: Path) -> Run:
    run = run_of(model, model, out, calibration=TEXT)
    EarlyExit.model_validate({"steps": 0, **settings}).apply(run)
    return run


def _recipe(settings: dict[str, Any], *more: dict[str, Any]) -> Any:
    chain = [{"technique": "early_exit", **settings}, *more]
    target = {} if more else {"target": {"format": "dense"}}
    return recipe_from(
        {"model": {"path": "model"}, "calibration": {"dataset": "python-stdlib"}, "chain": chain, **target}
    )


@torch.no_grad()
def _written(folder: Path, tokens_T: torch.Tensor, depths: Sequence[int], threshold: float) -> Walk:
    """By transformers' own layers and cache, one token after the other, as a server would."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    cache, said, computed = DynamicCache(config=model.config), [], []
    for place, token in enumerate(tokens_T):
        hidden_11H, gone = model.model.embed_tokens(token[None, None]), 0
        rotary = model.model.rotary_emb(hidden_11H, torch.tensor([[place]]))
        for depth, layer in enumerate(model.model.layers, start=1):
            out_11H = layer(hidden_11H, past_key_values=cache, position_embeddings=rotary)
            if not gone:
                hidden_11H = out_11H
                first, second = model.lm_head(model.model.norm(hidden_11H)).softmax(-1).topk(2).values.flatten()
                gone = depth if depth in depths and first - second >= threshold else 0
        said.append(model.lm_head(model.model.norm(hidden_11H)).argmax())
        computed.append(gone or len(model.model.layers))
    return Walk(torch.stack(said), torch.tensor(computed))
