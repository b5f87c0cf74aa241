"""Drafts that are language models of their own: fewer layers of the target, taught by it as it ships."""

import json
from pathlib import Path

import torch
from fixtures.exporting import Quantize, run_of, simulated_logits
from fixtures.training import STDLIB, logits_of, prepared, validations
from safetensors.torch import load_file

from optcore.draft_document import load_draft_document
from optcore.links import link_checkpoint
from optcore.references import ModelRef
from optcore.run import Run
from optcore.streaming.decoder import Decoder
from optcore.techniques import Draft
from optcore.training.teacher import LiveTeacher

torch.set_num_threads(1)
TOKENS_BT = torch.randint(0, 2048, (2, 24), generator=torch.Generator().manual_seed(3))


def draft(**more: object) -> Draft:
    settings = {
        "technique": "draft",
        "method": "model",
        "steps": 4,
        "batch": 2,
        "sequence_length": 32,
        "learning_rate": 1e-3,
        "validation": {"samples": 2, "every": 2},
        "data": {"kind": "text"},
    }
    return Draft.model_validate({**settings, **more})


def made(technique: Draft, checkpoint: Path, model: Path, folder: Path, *models: Path) -> Run:
    run = run_of(model, checkpoint, folder / "out", calibration=STDLIB)
    run.models = models
    if technique.steps:
        prepared(run, technique, folder / "windows")
    technique.apply(run)
    return run


def test_layers_in_a_row_go_and_what_is_left_is_a_model(stdlib_model: Path, tmp_path: Path) -> None:
    run = made(draft(steps=0), stdlib_model, stdlib_model, tmp_path)
    assert len(Decoder(run.out)) == 1, "a quarter of six layers"
    run = made(draft(steps=0, layers=3), stdlib_model, stdlib_model, tmp_path / "three")
    assert len(Decoder(run.out)) == 3
    depth = run.results["depth"]
    assert isinstance(depth, dict)
    first, *_, last = depth["dropped"]
    assert depth["dropped"] == list(range(first, last + 1))
    assert {first, last} <= set(range(1, 5)), "the first and the last layer stay"
    assert (run.out / "tokenizer.json").is_file()
    assert load_draft_document(run.out)


def test_it_learns_what_a_quantized_target_says(stdlib_model: Path, quantized: Quantize, tmp_path: Path) -> None:
    target = quantized("int2")
    run = made(draft(layers=2, steps=8), target, stdlib_model, tmp_path)
    start, *_, best = validations(run, "kl")
    assert best < start
    assert not (run.out / "quantization.json").exists(), "a plain checkpoint"
    assert "training" in run.results
    document = load_draft_document(run.out)
    assert document
    assert (document.method, document.steps) == ("model", 8)
    print(f"KL to the int2 target {start:.4f} untrained, {best:.4f} after 8 steps")


def test_a_teacher_says_what_its_quantized_form_will(quantized: Quantize, stdlib_model: Path) -> None:
    folder = quantized("int4")
    counts_BT = torch.ones_like(TOKENS_BT, dtype=torch.bool)
    teacher = LiveTeacher(folder, torch.device("cpu"))
    rows = teacher.rows({"input_ids": TOKENS_BT}, counts_BT, [0, 1])
    logits_NV = rows.of(slice(None))
    assert isinstance(logits_NV, torch.Tensor)
    expected_NV = simulated_logits(folder, TOKENS_BT).flatten(0, 1)
    assert torch.equal(logits_NV, expected_NV)
    assert not torch.equal(logits_NV, logits_of(stdlib_model, TOKENS_BT).flatten(0, 1))


def test_a_small_model_that_is_named_is_the_draft(stdlib_model: Path, tmp_path: Path) -> None:
    small = made(draft(steps=0, layers=2), stdlib_model, stdlib_model, tmp_path / "small").out
    start = draft(steps=0, start=ModelRef(path=str(small)))
    run = made(start, stdlib_model, stdlib_model, tmp_path, small)
    assert json.loads((run.out / "config.json").read_text())["num_hidden_layers"] == 2
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run.out, small))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_target_as_it_ships_writes_the_windows(stdlib_model: Path, quantized: Quantize, tmp_path: Path) -> None:
    written = draft(data={"kind": "generated", "prompt_tokens": 4, "temperature": 0})
    texts = {}
    for name, writer in {"quantized": quantized("int2"), "dense": stdlib_model}.items():
        run = run_of(stdlib_model, stdlib_model, tmp_path / name, calibration=STDLIB)
        run.teacher = writer
        prepared(run, written, tmp_path / f"{name}-windows")
        texts[name] = (tmp_path / f"{name}-windows" / "tokens.bin").read_bytes()
    assert texts["quantized"] != texts["dense"]
    plain = tmp_path / "plain"
    plain.mkdir()
    link_checkpoint(quantized("int2"), plain)  # the same dense weights, with nothing said of codes
    run = run_of(stdlib_model, stdlib_model, tmp_path / "unquantized", calibration=STDLIB)
    run.teacher = plain
    prepared(run, written, tmp_path / "plain-windows")
    assert (tmp_path / "plain-windows" / "tokens.bin").read_bytes() == texts["dense"]
