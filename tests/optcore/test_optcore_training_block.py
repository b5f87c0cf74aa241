"""Training one decoder layer at a time: it wins back divergence, goes on after a kill, and its memory is a layer's."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.tiny_models import MakeModel, make_model
from fixtures.training_stages import MakeStage, Trained, TrainingStage
from pydantic import ValidationError

from optcore.evaluate.fidelity_stream import compare
from optcore.events import AnyEvent, Progress
from optcore.streaming.decoder import Decoder
from optcore.streaming.hidden import HiddenStates
from optcore.techniques import Qad, Qat
from optcore.training.block_loop import relative_errors

torch.set_num_threads(1)
BLOCK: dict[str, Any] = {
    "scope": "block",
    "steps": 6,
    "batch": 4,
    "sequence_length": 32,
    "learning_rate": 3e-4,
    "validation": {"samples": 4, "every": 2},
    "skip_below": 0,
}


def _block(**changes: object) -> Qad:
    return Qad.model_validate({**BLOCK, **changes})


def _interrupted_at(layer: int) -> Callable[[AnyEvent], None]:
    def emit(event: AnyEvent) -> None:
        if isinstance(event, Progress) and event.phase == "training" and event.done == layer:
            raise InterruptedError

    return emit


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _never_worse(trained: Trained) -> bool:
    return all(block["best"] <= block["start"] for block in trained.results["training"]["blocks"])


@pytest.mark.parametrize("scheme", ["nvfp4_w4a16", "int3_g32"])
def test_layers_by_themselves_win_back_divergence(scheme: str, stdlib_model: Path, training_stage: MakeStage) -> None:
    """And what the stage says of it is what the report's own evaluation finds on other text, too."""
    stage = training_stage(stdlib_model, _block(), scheme)
    trained = stage.run("block")
    blocks = trained.results["training"]["blocks"]
    print(f"\n{scheme}: KL {trained.start['kl']:.5f} -> {trained.best['kl']:.5f} on the validation windows; errors of")
    print("  " + ", ".join(f"{block['start']:.5f} -> {block['best']:.5f}" for block in blocks))
    other = [
        compare(stage.measured(f"measured-{folder.name}", folder), 4, 128)[0]["result"].mean_kl
        for folder in (stage.checkpoint, trained.files)
    ]
    print(f"{scheme}: KL {other[0]:.5f} -> {other[1]:.5f} on held-out text")
    assert len(blocks) == 6
    assert _never_worse(trained)
    assert trained.best["kl"] < 0.6 * trained.start["kl"]
    assert other[1] < 0.8 * other[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"propagate": "quantized", "norms": True},
        {"propagate": "original", "scales": "freeze", "precision": "bfloat16"},
    ],
    ids=["quantized", "original"],
)
def test_a_killed_run_goes_on_behind_the_last_layer(
    changes: dict[str, object], stdlib_model: Path, training_stage: MakeStage
) -> None:
    technique = _block(**{"steps": 3, **changes})
    stage = training_stage(stdlib_model, technique, "int3_g32", kv_cache="int8")
    whole = stage.run("whole")
    with pytest.raises(InterruptedError):
        stage.run("killed", _interrupted_at(4))
    done = len(list((stage.folder / "killed" / "journal").glob("0*.json")))
    seen: list[str] = []
    resumed = stage.run("killed", lambda event: seen.append(getattr(event, "name", "")))
    assert done == 4
    assert seen.count("block_error") == 6 - done  # the others were not trained again
    assert _files(resumed.files) == _files(whole.files)
    assert resumed.results["training"] == whole.results["training"]
    assert _never_worse(whole)


def test_what_wins_nothing_is_undone(tiny_model: MakeModel, training_stage: MakeStage) -> None:
    """Steps that ruin every layer leave candidate 0 of each, which is the model as it was."""
    stage = training_stage(tiny_model("Llama"), _block(learning_rate=1.0, schedule="constant"), "int4_g32")
    ruined = stage.run("ruined")
    blocks = ruined.results["training"]["blocks"]
    assert [block["best_step"] for block in blocks] == [0, 0]
    assert ruined.best == ruined.start
    assert "undone" in ruined.results["notices"][0]
    assert {name: one for name, one in _files(ruined.files).items() if "quantized" in name} == {
        name: one for name, one in _files(stage.checkpoint).items() if "quantized" in name
    }
    skipped = stage.run("skipped", skip_below=1.0)
    assert skipped.results["training"]["steps"] == 0
    assert "nothing was trained" in skipped.results["notices"][0]
    assert _files(skipped.files).keys() == _files(stage.checkpoint).keys()


@pytest.mark.parametrize("family", ["Qwen3Moe", "Gemma2", "Bert"])
def test_other_families_train_too(family: str, tiny_model: MakeModel, training_stage: MakeStage) -> None:
    """Experts, norms behind a layer, and an encoder."""
    stage = training_stage(tiny_model(family), _block(steps=8, batch=8, sequence_length=64), "int3_g32")
    trained = stage.run("block")
    print(f"{family}: KL {trained.start['kl']:.6f} -> {trained.best['kl']:.6f}")
    assert _never_worse(trained)
    assert any(block["best"] < block["start"] for block in trained.results["training"]["blocks"])
    assert trained.best["kl"] <= trained.start["kl"]


def test_what_does_not_apply_is_refused() -> None:
    for changes, said in (
        ({"processes": 2}, "one process"),
        ({"teacher": "source"}, "their own dense ones"),
        ({"teacher_top_k": 8}, "their own dense ones"),
        ({"losses": [{"kind": "reverse_kl"}]}, "their own dense ones"),
    ):
        with pytest.raises(ValidationError, match=said):
            _block(**changes)
    assert _block().process_count == 1
    assert not Qat.model_validate(BLOCK).prepared_data.packing
    assert Qat().prepared_data.packing


def test_chosen_states_are_those_of_the_windows(tiny_model: MakeModel, tmp_path: Path) -> None:
    decoder = Decoder(tiny_model("Llama"))
    tokens = torch.randint(0, 2048, (5, 8), generator=torch.Generator().manual_seed(0))
    states = HiddenStates(decoder, tokens, tmp_path)
    found, expected = states.chosen([3, 0]), decoder.embed(tokens[[3, 0]])
    assert torch.equal(found.hidden_BTH, expected.hidden_BTH)
    with decoder.layer(0) as layer:
        one, other = (decoder.forward(0, layer, state).hidden_BTH for state in (found, expected))
    assert torch.equal(one, other)


def test_a_token_counts_by_its_own_energy() -> None:
    target = torch.tensor([[[1.0, -1.0], [1000.0, 1000.0], [0.0, 0.0]]])
    found = torch.tensor([[[1.5, -1.0], [1500.0, 1000.0], [0.0, 0.0]]])
    assert relative_errors(found, target).tolist() == [[0.125, 0.125, 0.0]]


_MEASURED = """
import sys, torch; from pathlib import Path; torch.set_num_threads(1)
from optcore.run import Run; from optcore.references import Calibration; from optcore.techniques import Qad
model, quantized, windows, out = map(Path, sys.argv[1:]); out.mkdir(parents=True)
run = Run('b', quantized, model, out, out / 's', Calibration(), (), lambda e: None, windows=windows,
          journal=out.with_name('journal'))
Qad(scope='block', steps=4, batch=2, learning_rate=1e-4, validation={'samples': 2, 'every': 2}, skip_below=0).apply(run)
assert len(run.results['training']['blocks']) > 3
print(float(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]) / 1024)
"""


def _peak_rss(model: Path, stage: Any) -> float:
    """MiB of a process that trains the layers of a model, activations kept small."""
    command = [
        sys.executable,
        "-c",
        _MEASURED,
        *map(str, (model, stage.checkpoint, stage.windows, stage.folder / "o/f")),
    ]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split()[-1])


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_peak_memory_does_not_follow_depth(stdlib_model: Path, tmp_path: Path) -> None:
    """Four times as many layers of equal width."""
    peaks = {}
    for layers in (4, 16):
        folder = tmp_path / str(layers)
        sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": layers, "num_attention_heads": 12}
        more = {"num_key_value_heads": 4, "head_dim": 64}
        (folder / "model").mkdir(parents=True)
        model = make_model("Llama", {**sizes, **more}, folder / "model", stdlib_model)
        stage = TrainingStage(model, folder, _block(steps=4, batch=2, validation={"samples": 2}), "int4_g32")
        peaks[layers] = _peak_rss(model, stage)
    growth = peaks[16] / peaks[4] - 1
    print(f"peak RSS: 4 layers {peaks[4]:.0f} MiB, 16 layers {peaks[16]:.0f} MiB: {growth:+.1%}")
    assert growth < 0.15


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scheme", ["nvfp4_w4a16", "int3_g32"])
def test_blocks_recover_nearly_what_the_whole_model_does(
    scheme: str, stdlib_model: Path, training_stage: MakeStage
) -> None:
    """The share of the KL that is gone, at equal windows and steps, each at the better of two rates."""
    settings: dict[str, object] = {"steps": 60, "sequence_length": 128, "validation": {"samples": 16}}
    stage = training_stage(stdlib_model, _block(**settings), scheme)
    shares: dict[str, float] = {}
    for scope, rates in (("block", (3e-4, 1e-3)), ("full", (1e-4, 3e-4))):
        for rate in rates:
            trained = stage.run(f"{scope}-{rate}", scope=scope, learning_rate=rate)
            share = 1 - trained.best["kl"] / trained.start["kl"]
            print(f"{scheme}, {scope}, {rate:g}: KL {trained.start['kl']:.5f} -> {trained.best['kl']:.5f}: {share:.1%}")
            shares[scope] = max(share, shares.get(scope, 0.0))
    print(f"{scheme}: recovered {shares['block']:.1%} by blocks, {shares['full']:.1%} as a whole, at equal tokens")
    assert shares["block"] > shares["full"] - 0.1
