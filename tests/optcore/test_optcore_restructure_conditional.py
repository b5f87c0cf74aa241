"""A model run as its `conditional.json` says: masks, thresholds, tokens that leave, and what carries the document."""

import json
from pathlib import Path

import pytest
import torch
from fixtures.exporting import run_of, streamed_logits
from fixtures.tiny_models import MakeModel
from transformers import AutoModelForCausalLM

from optcore.conditional import Conditional, SparseInput, SparseInputs, Window, load_conditional
from optcore.errors import BadCheckpoint
from optcore.evaluate.fidelity_stream import compare
from optcore.evaluate.side_by_side import SideBySide
from optcore.evaluate.throughput import Throughput
from optcore.export import Dense
from optcore.links import link_checkpoint
from optcore.streaming.conditions import visible
from optcore.streaming.decoder import Decoder, State
from optcore.streaming.hidden import HiddenStates

TOKENS_BT = torch.arange(4, 52).reshape(2, 24)


def test_a_window_is_the_last_tokens_and_the_first() -> None:
    window = Window(tokens=3, sinks=2, layers=())
    found = visible(12, window)
    for query in range(12):
        for key in range(12):
            assert found[query, key].item() == (key <= query and (query - key < 3 or key < 2))


@pytest.mark.parametrize("family", ["Llama", "GptOss", "Bloom", "Qwen3Next"])
def test_windowed_layers_attend_as_a_naive_mask_in_transformers(
    family: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    source = tiny_model(family)
    layers = (1,)
    folder = _conditional(source, tmp_path / "run", Conditional(window=Window(tokens=4, sinks=2, layers=layers)))
    expected = _naive(source, layers, visible(24, Window(tokens=4, sinks=2, layers=layers)))
    torch.testing.assert_close(streamed_logits(Decoder(folder), TOKENS_BT), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(streamed_logits(Decoder(source), TOKENS_BT), expected, atol=1e-3)


def test_a_window_that_holds_the_text_changes_no_bit(stdlib_model: Path, tmp_path: Path) -> None:
    folder = _conditional(stdlib_model, tmp_path / "run", Conditional(window=Window(tokens=22, sinks=2, layers=(0, 3))))
    assert torch.equal(streamed_logits(Decoder(folder), TOKENS_BT), streamed_logits(Decoder(stdlib_model), TOKENS_BT))


def test_inputs_below_a_threshold_and_dropped_channels_are_zero(stdlib_model: Path, tmp_path: Path) -> None:
    up, down = "model.layers.1.mlp.up_proj", "model.layers.2.mlp.down_proj"
    tensors = {
        up: SparseInput(ratio=0, reached=0, threshold=0.4),
        down: SparseInput(ratio=0, reached=0, dropped=(0, 5)),
    }
    inputs = SparseInputs(method="threshold", allocation="uniform", ratio=0, tensors=tensors)
    folder = _conditional(stdlib_model, tmp_path / "run", Conditional(inputs=inputs))
    model = AutoModelForCausalLM.from_pretrained(stdlib_model, dtype=torch.float32)
    linears = dict(model.named_modules())
    linears[up].register_forward_pre_hook(lambda _, x: (torch.where(x[0].abs() <= 0.4, 0.0, x[0]),))
    keep_K = torch.ones(linears[down].in_features)
    keep_K[[0, 5]] = 0
    linears[down].register_forward_pre_hook(lambda _, x: (x[0] * keep_K,))
    with torch.no_grad():
        torch.testing.assert_close(
            streamed_logits(Decoder(folder), TOKENS_BT), model(TOKENS_BT).logits, rtol=1e-4, atol=1e-4
        )


def test_tokens_that_left_stay_as_they_are(stdlib_model: Path, tmp_path: Path) -> None:
    decoder = Decoder(stdlib_model)

    def freezing(index: int, state: State) -> torch.Tensor:
        leaving_BT = torch.zeros(state.hidden_BTH.shape[:2], dtype=torch.bool)
        leaving_BT[:, index] = True  # one more after each layer
        return leaving_BT

    decoder.freezing = freezing
    states = HiddenStates(decoder, TOKENS_BT, tmp_path)
    after = []
    for index in range(3):
        with decoder.layer(index) as layer:
            states.advance(index, layer)
        after.append(states.hidden_STH.clone())
    assert torch.equal(after[2][:, 0], after[0][:, 0])
    assert torch.equal(after[2][:, 1], after[1][:, 1])
    assert not torch.equal(after[1][:, 1], after[0][:, 1])
    assert not torch.equal(after[2][:, 2], after[1][:, 2])
    assert states.frozen_ST is not None
    assert states.frozen_ST[:, :3].all()
    assert not states.frozen_ST[:, 3:].any()


def test_evaluation_measures_the_model_as_it_is_run(stdlib_model: Path, tmp_path: Path) -> None:
    window = Conditional(window=Window(tokens=8, sinks=0, layers=tuple(range(6))))
    folder = _conditional(stdlib_model, tmp_path / "run", window)
    run = run_of(stdlib_model, folder, tmp_path / "out")
    models = SideBySide(run)
    assert models.source is not models.result
    result = compare(run, 2, 64)[0]["result"]
    assert result.mean_kl > 0.01
    run.export = folder
    assert Throughput().measure(run) == []
    assert "does not read conditional.json" in run.results["notices"][0]  # type: ignore[index]


def test_a_dense_export_carries_the_document(stdlib_model: Path, tmp_path: Path) -> None:
    said = Conditional(window=Window(tokens=8, sinks=4, layers=(0,)))
    folder = _conditional(stdlib_model, tmp_path / "run", said)
    run = run_of(stdlib_model, folder, tmp_path / "out")
    Dense().write(run)
    assert load_conditional(run.out) == said
    assert json.loads((run.out / "conditional.json").read_text())["accelerated_by"].startswith("nothing")


def test_a_document_of_another_model_is_refused(stdlib_model: Path, tmp_path: Path) -> None:
    folder = _conditional(stdlib_model, tmp_path / "run", Conditional(window=Window(tokens=8, sinks=4, layers=(6,))))
    with pytest.raises(BadCheckpoint, match="layer 6"):
        Decoder(folder)


def _conditional(source: Path, folder: Path, conditional: Conditional) -> Path:
    folder.mkdir()
    link_checkpoint(source, folder)
    conditional.save(folder)
    return folder


def _naive(source: Path, layers: tuple[int, ...], seen_TT: torch.Tensor) -> torch.Tensor:
    """transformers' own model with eager attention, whose additive masks are narrowed by hand."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    lists = [each for each in model.modules() if isinstance(each, torch.nn.ModuleList) and len(each) == 2]
    decoder_layers = next(each for each in lists if all(len(list(layer.children())) > 1 for layer in each))

    def narrow(_: object, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        mask = kwargs["attention_mask"]
        assert isinstance(mask, torch.Tensor)
        if mask.dtype == torch.bool:
            return args, {**kwargs, "attention_mask": mask & seen_TT}
        return args, {**kwargs, "attention_mask": mask.masked_fill(~seen_TT, torch.finfo(torch.float32).min)}

    for index in layers:
        decoder_layers[index].register_forward_pre_hook(narrow, with_kwargs=True)
    with torch.no_grad():
        logits: torch.Tensor = model(TOKENS_BT, use_cache=False).logits
    return logits
