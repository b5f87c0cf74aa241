"""Embeddings and head in few bits, mixes, and what lies beside the codes: the pass, what runs it, what is written."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import described, export, plain, run_of, simulated_logits
from fixtures.tiny_models import SIZES, MakeModel, make_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from optcore import mixes
from optcore.algorithms.codes import fake_quantize
from optcore.algorithms.scales import find_scales
from optcore.calibration import tables
from optcore.calibration.digest import weight_digest
from optcore.coverage import coverage
from optcore.errors import RecipeError
from optcore.evaluate.side_by_side import SideBySide
from optcore.events import AnyEvent, Notice
from optcore.export import Dense
from optcore.importance import IMPORTANCE, load_importance
from optcore.mixes import Mix
from optcore.quantization import OUTSIDE, load_quantization
from optcore.schemes import PRESETS
from optcore.sizes import weight_bytes
from optcore.streaming.decoder import Decoder
from optcore.streaming.quantized import QuantizedCheckpoint
from optcore.streaming.simulate import Simulation, as_quantized
from optcore.techniques import Ptq
from optcore.training.student import Student

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
TOKENS = torch.arange(24).reshape(2, 12) * 7
SMALL = Mix(name="small", title="small", base="q4_0", v=(("q8_0", "first_two"),), down=(("q8_0", "more_bits"),))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def small_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mix of formats of 32 values, which the tiny models' rows are long enough for."""
    monkeypatch.setattr(mixes, "MIXES", {**mixes.MIXES, "small": SMALL})
    monkeypatch.setattr("optcore.calibration.assignment.MIXES", mixes.MIXES)


def applied(technique: Ptq, model: Path, out: Path, events: list[AnyEvent] | None = None) -> Path:
    technique.apply(run_of(model, model, out, events))
    return out


def rounded(weight_NK: torch.Tensor, scheme: str) -> torch.Tensor:
    """The whole matrix at once by plain scales."""
    args = PRESETS[scheme].weights
    (scales,) = find_scales([weight_NK.float()], args, "max", torch.bfloat16)
    return fake_quantize(weight_NK.float(), scales, args)


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_embeddings_and_head_are_stored_as_codes(
    family: str, tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama's have values of their own; Gemma's are one, under the embeddings' name."""
    monkeypatch.setattr(tables, "_PART_values", 1000)  # rows go through in parts
    model = tiny_model(family)
    checkpoint = applied(plain("q4_0", tables="q8_0"), model, tmp_path / "out")
    description, stored = described(checkpoint), QuantizedCheckpoint(checkpoint)
    source = load_file(model / "model.safetensors")
    tied = bool(Decoder(model).model.config.tie_word_embeddings)
    assert len(description.tables) == (1 if tied else 2)
    for name, table in description.tables.items():
        assert torch.equal(stored.weight(name), rounded(source[f"{name}.weight"], "q8_0"))
        assert weight_digest(stored.weight(name)) == table.digest
        assert name not in description.ignored
    kept = {name for name, _ in stored.plain_tensors()}
    gone = {f"{name}.weight" for name in description.matrices}
    assert kept == {name for name in source if name not in gone}
    assert {scheme.name for scheme in description.schemes} == {"q4_0", "q8_0"}


def test_a_stored_copy_of_a_tied_head_goes_too(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model("Gemma2"), tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors[f"{HEAD}.weight"] = tensors[f"{EMBEDDING}.weight"].clone()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    checkpoint = applied(plain("q8_0"), model, tmp_path / "out")
    assert list(described(checkpoint).tables) == [EMBEDDING]
    assert f"{HEAD}.weight" not in load_file(checkpoint / OUTSIDE)
    assert HEAD not in described(checkpoint).ignored


def test_all_other_formats_leave_them_alone(tiny_model: MakeModel, tmp_path: Path) -> None:
    for number, technique in enumerate((plain("int4_g32"), plain("q8_0", tables="keep"))):
        checkpoint = applied(technique, tiny_model("Llama"), tmp_path / str(number))
        assert described(checkpoint).tables == {}
        assert f"{EMBEDDING}.weight" in load_file(checkpoint / OUTSIDE)


def test_the_simulation_computes_what_the_written_values_do(tiny_model: MakeModel, tmp_path: Path) -> None:
    """The dense target, in transformers, against the streamed simulation and against a model that is held whole."""
    model = tiny_model("Llama")
    checkpoint = applied(plain("q8_0"), model, tmp_path / "out")
    files = export(Dense(), checkpoint, tmp_path / "dense", model)
    assert f"{HEAD}.weight" in files.names
    decoder = Decoder(checkpoint)
    whole = decoder.load_all()
    with torch.no_grad(), as_quantized(decoder):
        held = whole(TOKENS).logits
        for name in described(checkpoint).matrices:  # bfloat16 would round what the block format keeps
            parameter = decoder.model.get_parameter(f"{name}.weight")
            assert torch.equal(parameter, QuantizedCheckpoint(checkpoint).weight(name))
    with torch.no_grad():
        plainly = whole(TOKENS).logits
    own = simulated_logits(checkpoint, TOKENS)
    torch.testing.assert_close(own, held, atol=1e-5, rtol=1e-5)
    assert (own - plainly).abs().max() > 1e-3
    by_hand, written = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (model, tmp_path / "dense")
    )
    with torch.no_grad():
        for name in described(checkpoint).matrices:
            by_hand.get_parameter(f"{name}.weight").copy_(QuantizedCheckpoint(checkpoint).weight(name).bfloat16())
        assert torch.equal(by_hand(TOKENS).logits, written(TOKENS).logits)


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_the_result_reads_rounded_tables_and_the_source_does_not(
    family: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    """Both share one decoder: nothing else of the model is quantized, so the tables make all the difference."""
    model = tiny_model(family)
    checkpoint = applied(plain("q4_0", tables="q4_0", ignore=["re:.*(?<!down_proj)$"]), model, tmp_path / "out")
    run = run_of(model, checkpoint, tmp_path / "compare")
    models = SideBySide(run)
    assert models.source is models.result
    errors = models.walk([TOKENS])
    (_, states), *_ = models.batches()
    with torch.no_grad():
        of_source = models.logits("source", states["source"])
        of_result = models.logits("result", states["result"])
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        expected = whole(TOKENS).logits
        for name, table in described(checkpoint).matrices.items():
            weight = whole.get_parameter(f"{name}.weight")
            weight.copy_(rounded(weight, table.scheme))
        changed = whole(TOKENS).logits
    torch.testing.assert_close(of_source, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(of_result, changed, atol=1e-4, rtol=1e-4)
    assert (expected - changed).abs().max() > 100 * (of_source - expected).abs().max()
    assert errors[0][1] > 0


def test_a_student_starts_from_rounded_tables(tiny_model: MakeModel, tmp_path: Path) -> None:
    checkpoint = applied(plain("q8_0"), tiny_model("Llama"), tmp_path / "out")
    student = Student(checkpoint)
    student.simulate("freeze")
    stored = QuantizedCheckpoint(checkpoint)
    assert torch.equal(student.model.get_parameter(f"{HEAD}.weight").data, stored.weight(HEAD))


def test_coverage_counts_them(tiny_model: MakeModel, tmp_path: Path) -> None:
    checkpoint = applied(plain("q8_0"), tiny_model("Llama"), tmp_path / "out")
    export(Dense(), checkpoint, tmp_path / "dense", tiny_model("Llama"))
    found = coverage(described(checkpoint), tiny_model("Llama"), tmp_path / "dense")
    rows = {row.name: row for row in found.classes}
    assert rows[EMBEDDING].schemes == rows[HEAD].schemes == ("q8_0",)
    assert rows[HEAD].quantized == rows[HEAD].parameters
    assert found.quantized_share > 0.99


def test_containers_of_other_targets_are_counted_too(tiny_model: MakeModel, tmp_path: Path) -> None:
    """A GGUF or ONNX file has no headers that we read: the codes and scales that it was made from are counted."""
    model = tiny_model("Mixtral")
    checkpoint = applied(plain("q8_0"), model, tmp_path / "out")
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "model.gguf").write_bytes(bytes(1000))
    assert weight_bytes(folder) == 1000
    rows = {row.name: row for row in coverage(described(checkpoint), checkpoint, folder).classes}
    head, norm = rows[HEAD], rows["model.norm"]
    assert (head.result_bytes, norm.result_bytes) == (head.parameters * 34 // 32, norm.source_bytes)
    experts = next(row for name, row in rows.items() if "experts" in name)
    assert experts.result_bytes == experts.parameters * 34 // 32
    shutil.copy(model / "model.safetensors", folder)
    assert weight_bytes(folder) == (model / "model.safetensors").stat().st_size


def test_a_head_is_weighed_by_what_it_is_given(tiny_model: MakeModel, tmp_path: Path) -> None:
    """`hessian` asks for the importance of inputs; what is looked up has none."""
    model = tiny_model("Llama")
    technique = plain("q4_0", tables="q4_0", scale_search="hessian")
    checkpoint = applied(technique, model, tmp_path / "out")
    measured = load_importance(checkpoint)
    assert measured
    given_K = head_inputs(model, checkpoint)
    torch.testing.assert_close(measured[HEAD].mean_square_K, given_K, rtol=1e-4, atol=1e-6)
    assert measured[HEAD].tokens == 2 * 64
    weights, args = load_file(model / "model.safetensors"), PRESETS["q4_0"].weights
    stored = QuantizedCheckpoint(checkpoint)
    for name, method, weighing_K in ((HEAD, "hessian", measured[HEAD].mean_square_K), (EMBEDDING, "mse", None)):
        weight_NK = weights[f"{name}.weight"].float()
        (scales,) = find_scales([weight_NK], args, method, torch.bfloat16, weighing_K)  # type: ignore[arg-type]
        assert torch.equal(stored.weight(name), fake_quantize(weight_NK, scales, args))


def head_inputs(model: Path, checkpoint: Path) -> torch.Tensor:
    """Mean squares of what the head is given of the calibration text, by transformers with the rounded layers."""
    from optcore.calibration.propagate import calibration_windows

    decoder = Decoder(checkpoint)
    run = run_of(model, model, checkpoint.with_name("windows"))
    windows_ST = calibration_windows(run, decoder)
    whole, simulation = decoder.load_all(), Simulation(checkpoint)
    simulation.description.tables.clear()  # layers are measured on the embeddings as they were
    for index, layer in enumerate(decoder.layers):
        for path, name in ((p, f"model.layers.{index}.{p}") for p, _ in layer.named_modules()):
            if name in simulation.description.linears:
                layer.get_submodule(path).weight.data = simulation.checkpoint.weight(name)
    with torch.no_grad():
        hidden = whole.base_model(windows_ST)[0]
    return hidden.flatten(0, 1).square().mean(0)


@pytest.mark.usefixtures("small_mix")
def test_a_mix_gives_members_of_a_group_different_formats(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("Llama")
    settings: dict[str, Any] = {"scheme": "small", "tables": "keep"}
    checkpoint = applied(Ptq(**settings, smoothing="none"), model, tmp_path / "out")
    linears = described(checkpoint).linears
    found = {name.rpartition(".")[2]: linear.scheme for name, linear in linears.items() if ".layers.0." in name}
    assert (found["q_proj"], found["k_proj"], found["v_proj"]) == ("q4_0", "q4_0", "q8_0")
    assert found["gate_proj"] == found["up_proj"] == "q4_0"
    tokens = {linear.tokens for name, linear in linears.items() if "self_attn" in name}
    assert tokens == {128}  # one measurement serves all members
    plainly = applied(Ptq(scheme="q8_0", tables="keep", smoothing="none"), model, tmp_path / "alone")
    value = "model.layers.0.self_attn.v_proj"
    assert linears[value].digest == described(plainly).linears[value].digest
    simulated_logits(checkpoint, TOKENS)


def test_rows_that_blocks_do_not_divide_take_another_format(stdlib_model: Path, tmp_path: Path) -> None:
    sizes = {"hidden_size": 48, "head_dim": 16, "intermediate_size": 64, "num_attention_heads": 4}
    (tmp_path / "model").mkdir()
    model = make_model("Llama", {**SIZES, **sizes}, tmp_path / "model", stdlib_model)
    events: list[AnyEvent] = []
    checkpoint = applied(plain("q8_0"), model, tmp_path / "out", events)
    left = {name.rpartition(".")[2] for name in described(checkpoint).linears}
    assert left == {"down_proj", "o_proj"}  # 64 inputs; all others have 48
    assert described(checkpoint).tables == {}
    said = [event.message for event in events if isinstance(event, Notice)]
    assert any("left in high precision, not q8_0" in message for message in said)


def test_experts_of_a_projection_have_one_format(tiny_model: MakeModel, tmp_path: Path) -> None:
    override = {"modules": "re:.*experts\\.1\\.w2", "scheme": "q8_0"}
    with pytest.raises(RecipeError, match="different formats"):
        applied(plain("q4_0", tables="keep", overrides=[override]), tiny_model("Mixtral"), tmp_path / "one")
    override["modules"] = "re:.*experts\\.\\d+\\.w2"
    checkpoint = applied(plain("q4_0", tables="keep", overrides=[override]), tiny_model("Mixtral"), tmp_path / "all")
    schemes = {name[-2:]: linear.scheme for name, linear in described(checkpoint).linears.items() if "experts" in name}
    assert schemes == {"w1": "q4_0", "w3": "q4_0", "w2": "q8_0"}


@pytest.mark.parametrize("scheme", ["int4_g32", "fp8"])
def test_importance_lies_beside_the_codes_of_any_format(scheme: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    """fp8 measures magnitudes alone: squares come along."""
    model = tiny_model("Llama")
    settings = {"smoothing": "none", "rounding": "gptq" if scheme == "int4_g32" else "nearest"}
    checkpoint = applied(plain(scheme, **settings, propagate="original"), model, tmp_path / "out")
    measured = load_importance(checkpoint)
    assert measured
    assert measured.keys() == described(checkpoint).linears.keys()
    first = measured["model.layers.0.self_attn.q_proj"]
    torch.testing.assert_close(first.mean_square_K, first_inputs(model, tmp_path), rtol=1e-4, atol=1e-6)
    assert first.tokens == 128
    assert torch.equal(first.mean_square_K, measured["model.layers.0.self_attn.v_proj"].mean_square_K)


def first_inputs(model: Path, folder: Path) -> torch.Tensor:
    """Mean squares of what the first attention is given of the calibration text, by transformers."""
    from optcore.calibration.propagate import calibration_windows

    windows_ST = calibration_windows(run_of(model, model, folder / "windows"), Decoder(model))
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).model
    with torch.no_grad():
        hidden = whole.layers[0].input_layernorm(whole.embed_tokens(windows_ST))
    return hidden.flatten(0, 1).square().mean(0)


def test_no_text_no_importance(tiny_model: MakeModel, tmp_path: Path) -> None:
    checkpoint = applied(plain("q8_0"), tiny_model("Llama"), tmp_path / "out")
    assert load_importance(checkpoint) is None


def test_a_pass_that_goes_on_leaves_the_same_files(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Killed behind the first layer: its importance is in the journal, and the head is measured behind the last."""
    model = tiny_model("Llama")
    technique = Ptq(scheme="q4_0", tables="q8_0", smoothing="none", scale_search="max")
    whole = applied(technique, model, tmp_path / "whole")
    left = applied(technique, model, tmp_path / "killed")
    for path in (tmp_path / "killed-journal" / "q4_0").glob("00001.*"):
        path.unlink()
    for name in (IMPORTANCE, OUTSIDE, "quantization.json", "quantized-00001.safetensors"):
        (left / name).unlink()
    applied(technique, model, tmp_path / "killed")
    files = sorted(path.name for path in whole.iterdir())
    assert IMPORTANCE in files
    assert files == sorted(path.name for path in left.iterdir())
    assert all((whole / name).read_bytes() == (left / name).read_bytes() for name in files)


def test_importance_is_no_part_of_a_result(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("Llama")
    checkpoint = applied(plain("q8_0", smoothing="awq"), model, tmp_path / "out")
    assert (checkpoint / IMPORTANCE).is_file()
    export(Dense(), checkpoint, tmp_path / "dense", model)
    assert not (tmp_path / "dense" / IMPORTANCE).exists()
    copied = shutil.copytree(checkpoint, tmp_path / "copy")
    (copied / IMPORTANCE).unlink()
    assert load_quantization(copied) == load_quantization(checkpoint)
