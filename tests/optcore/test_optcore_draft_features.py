"""Features of a target, kept on disk: those that the whole target computes, as many bytes as was said, resumable."""

from pathlib import Path

import pytest
import torch
from fixtures.disk import small_disk
from fixtures.exporting import Quantize, run_of
from fixtures.tiny_models import MakeModel
from fixtures.training import Killed

from optcore.errors import BadCheckpoint, OutOfDisk, RecipeError
from optcore.events import AnyEvent, Progress
from optcore.run import Run
from optcore.speculative.target import Features, Target, TargetEnds
from optcore.training.kept_features import KeptFeatures, estimate_bytes, keep_features
from optcore.training.packing import Document, packed_whole
from optcore.training.trainee import inputs_of
from optcore.training.windows import Windows, WindowWriter


def _run(target: Path, folder: Path, windows: int = 9) -> Run:
    """A stage that looks at windows of several random documents each, none of which sees another."""
    generator, writer = torch.Generator().manual_seed(0), WindowWriter(folder / "windows", 96)
    documents = [Document(torch.randint(2048, (40,), generator=generator).tolist()) for _ in range(2 * windows)]
    for batch in packed_whole(documents, (), 96, 0):
        writer.append(batch)
    assert writer.finish("text", 2, 0).windows == windows
    run = run_of(target, target, folder / "features")
    run.stage, run.windows = "1-draft-features", folder / "windows"
    return run


def _looked(run: Run, taps: tuple[int, ...], numbers: list[int]) -> tuple[Features, Features]:
    """What was kept of some windows, and what the whole target computes of them as one batch."""
    batch = Windows(run.windows).read(numbers)
    return KeptFeatures(run.out).features(batch, numbers), Target(run.checkpoint, taps).look(inputs_of(batch))


def _pairs(kept: Features, looked: Features) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip((kept.hidden_BTH, *kept.tapped), (looked.hidden_BTH, *looked.tapped), strict=True))


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Qwen3Moe"])
def test_they_are_the_whole_target_s_own(tiny_model: MakeModel, tmp_path: Path, family: str) -> None:
    run = _run(tiny_model(family), tmp_path)
    keep_features(run, (1, 0), "float32")
    for own, theirs in _pairs(*_looked(run, (1, 0), list(range(9)))):  # the same batch
        assert torch.equal(own, theirs)
    for own, theirs in _pairs(*_looked(run, (1, 0), [7, 2])):  # another one: sums are rounded in another order
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-5)


def test_of_a_quantized_target(quantized: Quantize, tmp_path: Path) -> None:
    run = _run(quantized("nvfp4", kv_cache="fp8"), tmp_path)
    keep_features(run, (0, 2, 5), "bfloat16", shard_windows=5)
    kept, looked = _looked(run, (0, 2, 5), list(range(5)))  # a shard: one batch of both
    assert all(torch.equal(own, theirs.bfloat16()) for own, theirs in _pairs(kept, looked))


@pytest.mark.parametrize("taps", [(), (0, 1)])
def test_as_many_bytes_as_was_said(tiny_model: MakeModel, tmp_path: Path, taps: tuple[int, ...]) -> None:
    run = _run(tiny_model("Llama"), tmp_path)
    keep_features(run, taps, "bfloat16", shard_windows=4)
    measured = sum(path.stat().st_size for path in run.out.iterdir())
    said = estimate_bytes(9, 96, 128, len(taps), "bfloat16")
    print(f"{measured} bytes, {said} said")
    assert abs(measured / said - 1) < 0.02
    assert "features of 864 tokens take" in str(run.results["notices"])


def test_a_killed_stage_computes_no_shard_twice(tiny_model: MakeModel, tmp_path: Path) -> None:
    whole, killed = _run(tiny_model("Llama"), tmp_path / "a"), _run(tiny_model("Llama"), tmp_path / "b")
    keep_features(whole, (0,), "bfloat16", shard_windows=3)
    said: list[int] = []

    def emit(event: AnyEvent) -> None:
        if isinstance(event, Progress):
            said.append(event.done)
            if said == [1, 2, 3]:
                raise Killed  # in the middle of the second shard

    killed.emit = emit
    with pytest.raises(Killed):
        keep_features(killed, (0,), "bfloat16", shard_windows=3)
    first = killed.out / "features-00000.bin"
    written = first.stat().st_mtime_ns
    assert sorted(path.name for path in killed.out.iterdir()) == [first.name, "features-00001.part"]
    with pytest.raises(BadCheckpoint, match="cannot read the features"):
        KeptFeatures(killed.out)
    keep_features(killed, (0,), "bfloat16", shard_windows=3)
    assert said == [1, 2, 3, 2, 3, 4, 5, 6]
    assert first.stat().st_mtime_ns == written
    one, other = ({path.name: path.read_bytes() for path in run.out.iterdir()} for run in (whole, killed))
    assert one == other


def test_a_layer_that_is_not_there(tiny_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="layer 2 is to be read, and the target has 2"):
        keep_features(_run(tiny_model("Llama"), tmp_path), (2,), "bfloat16")


def test_no_room_is_said_before_anything_is_computed(tiny_model: MakeModel, tmp_path: Path) -> None:
    run = _run(tiny_model("Llama"), tmp_path, windows=64)
    with small_disk(tmp_path / "small", 2) as disk:
        run.out = disk / "features"
        with pytest.raises(OutOfDisk, match=r"the features take 0.01 GiB"):
            keep_features(run, (0, 1), "float32")
        assert not list(run.out.iterdir())


def test_a_shard_that_was_cut(tiny_model: MakeModel, tmp_path: Path) -> None:
    run = _run(tiny_model("Llama"), tmp_path)
    keep_features(run, (), "bfloat16")
    (run.out / "features-00000.bin").write_bytes(b"short")
    with pytest.raises(BadCheckpoint, match="not as long"):
        KeptFeatures(run.out)


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Cohere", "Granite", "OPT"])
def test_logits_without_the_layers_in_memory(tiny_model: MakeModel, family: str) -> None:
    folder, tokens_BT = tiny_model(family), torch.arange(40).view(2, 20)
    target, ends = Target(folder), TargetEnds(folder)
    hidden_BTH = target.look({"input_ids": tokens_BT}).hidden_BTH
    logits_BTV = target.model(input_ids=tokens_BT, use_cache=False).logits.detach()
    assert torch.equal(ends.logits(hidden_BTH), logits_BTV)
    assert all(parameter.is_meta for layer in ends.decoder.layers for parameter in layer.parameters())
    assert torch.equal(ends.embeddings.weight, target.embeddings.weight)
    assert (ends.width, ends.vocabulary) == (128, 2048)
