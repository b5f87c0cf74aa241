"""Layers and windows that a target has no place for are refused when the model is fetched, as its writer would."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.engine_runs import recipe_for
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel, make_model
from fixtures.whole_runs import stages_in_this_process

from optcore.engine import optimize
from optcore.errors import OptError, RecipeError
from optcore.events import AnyEvent, StageStarted
from optcore.export import Gguf, Modelopt, Onnx
from optcore.export.base import Export
from optcore.export.sizes import check_modelopt
from optcore.fetching import fetch_work
from optcore.gguf.layout import check_blocks
from optcore.recipe import Recipe, recipe_from
from optcore.restructure.attention_window import needs_conditions, set_window
from optcore.restructure.grouping import check_grouping
from optcore.schemes import GGML_FORMATS, PRESETS
from optcore.stage import Windowing
from optcore.techniques import AttentionWindow

DOWN, FFN, ATTENTION = "re:.*down_proj", "re:.*(gate|up|down)_proj", "re:.*self_attn.*"
QUICK = {"technique": "ptq", "rounding": "nearest", "smoothing": "none", "scale_search": "max"}
PRUNE: dict[str, Any] = {"technique": "prune", "order": "random", "rescale": False, "ends": True}
BYTE, TILE = "packs two of them into a byte", "whole blocks of 128 x 128 only"
WINDOW = {"technique": "attention_window", "window": 32, "sinks": 0}


def asked(model: Path, ptq: dict[str, Any], format_: str, *before: dict[str, Any], **more: Any) -> Recipe:
    chain = (*before, {**QUICK, **ptq})
    return recipe_from(recipe_for(model, *chain, **{"target": {"format": format_}, **more}))


def check_early(recipe: Recipe, folder: Path) -> None:
    torch.set_num_threads(1)
    grouping = fetch_work(recipe).grouping
    assert grouping
    check_grouping(Path(recipe.model.path or ""), grouping, folder / "asked")


def write(recipe: Recipe, target: Export, folder: Path) -> None:
    """The chain and the target, without a look ahead."""
    source = checkpoint = Path(recipe.model.path or "")
    for number, technique in enumerate(recipe.chain):
        run = run_of(source, checkpoint, folder / str(number))
        technique.apply(run)
        checkpoint = run.out
    target.write(run_of(source, checkpoint, folder / "out"))


@pytest.mark.parametrize(
    ("ffn", "format_", "ptq", "message"),
    [
        (257, "modelopt", {"scheme": "int4", "ignore": [DOWN]}, rf"gate_proj has 257 outputs, .* {BYTE}"),
        (257, "modelopt", {"scheme": "int4", "ignore": [FFN]}, ""),
        (257, "modelopt", {"scheme": "fp8", "ignore": [DOWN]}, ""),
        (
            257,
            "modelopt",
            {"scheme": "fp8", "overrides": [{"modules": "re:.*(gate|up)_proj", "scheme": "int4"}]},
            rf"gate_proj has 257 outputs, .* {BYTE}",
        ),
        (256, "modelopt", {"scheme": "fp8_block"}, rf"k_proj is 64 x 128, .* {TILE}"),
        (256, "modelopt", {"scheme": "fp8_block", "ignore": [ATTENTION]}, ""),
        (252, "awq", {"scheme": "int4", "ignore": [DOWN]}, "gate_proj is 252 x 128, .* packs 8 values"),
        (256, "awq", {"scheme": "int4_asym"}, ""),
        (254, "gptq", {"scheme": "int8_w8a16"}, "gate_proj is 254 x 128, .* packs 4 values"),
        (252, "gptq", {"scheme": "int8_w8a16"}, ""),
        (240, "gguf", {"scheme": "int8_w8a16"}, r"down_proj\.weight has 240 inputs, and Q8_0 stores 32 together"),
        (240, "gguf", {"scheme": "nvfp4_w4a16"}, r"down_proj\.weight has 240 inputs, and NVFP4 stores 64 together"),
        (240, "gguf", {"scheme": "nvfp4_w4a16", "ignore": [DOWN]}, ""),
    ],
)
def test_sizes_are_refused_as_the_writer_refuses_them(
    ffn: int, format_: str, ptq: dict[str, Any], message: str, stdlib_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    model = make_model("Llama", {"intermediate_size": ffn}, tmp_path / "model", stdlib_model)
    recipe = asked(model, ptq, format_)
    if not message:
        if fetch_work(recipe).grouping:
            check_early(recipe, tmp_path)
        write(recipe, recipe.target, tmp_path)
        return
    with pytest.raises(RecipeError, match=message) as early:
        check_early(recipe, tmp_path)
    with pytest.raises(RecipeError) as late:
        write(recipe, recipe.target, tmp_path)
    assert early.value.failure("") == late.value.failure("")


def test_formats_without_such_sizes_are_held_in_all() -> None:
    """Rows of those in groups are whole blocks once the groups divide them; the rest ask nothing of a side."""
    odd = 31
    for name in Modelopt.schemes - Modelopt.sized_schemes:
        check_modelopt("layer", PRESETS[name], (odd, odd))
    for name in Gguf.schemes - Gguf.sized_schemes - GGML_FORMATS:
        check_blocks("layer", name, PRESETS[name].weights.group_size or odd)


def test_what_pruning_will_leave_is_asked(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Of 256 FFN channels 129 stay."""
    cut = {**PRUNE, "ffn": {"size": 129}}
    recipe = asked(tiny_model("Llama"), {"scheme": "int4", "ignore": [DOWN]}, "modelopt", cut)
    with pytest.raises(RecipeError, match=rf"gate_proj has 129 outputs, .* {BYTE}") as early:
        check_early(recipe, tmp_path)
    with pytest.raises(RecipeError) as late:
        write(recipe, recipe.target, tmp_path)
    assert early.value.failure("") == late.value.failure("")


def test_a_target_beside_the_main_one_is_named(tiny_model: MakeModel, tmp_path: Path) -> None:
    more = {"also": [{"format": "dense"}, {"format": "modelopt"}]}
    recipe = asked(tiny_model("Llama"), {"scheme": "fp8_block"}, "compressed-tensors", **more)
    with pytest.raises(RecipeError, match=TILE) as found:
        check_early(recipe, tmp_path)
    assert found.value.field == "/also/1/format"


def test_a_further_format_is_asked_of_the_targets_it_goes_to(tiny_model: MakeModel, tmp_path: Path) -> None:
    """`fp8_block` goes to Model Optimizer's target and not to GPTQ's, which holds the main format."""
    ptq = {"scheme": "int4", "also": ["fp8_block"], "propagate": "original"}
    for further, is_refused in (({"format": "gptq"}, False), ({"format": "modelopt"}, True)):
        recipe = asked(tiny_model("Llama"), ptq, "compressed-tensors", also=[further])
        if is_refused:
            with pytest.raises(RecipeError, match=TILE):
                check_early(recipe, tmp_path)
        else:
            check_early(recipe, tmp_path)


@pytest.mark.parametrize(
    ("before", "scheme", "format_", "is_asked"),
    [
        ([], "int4", "compressed-tensors", False),
        ([], "fp8", "modelopt", False),
        ([], "q4_k_m", "gguf", False),
        ([], "int4", "modelopt", True),
        ([{**WINDOW, "sinks": 4}], "int4", "modelopt", True),
        ([{"technique": "prune", "target": {"params": 0.7}}], "int4", "modelopt", False),
    ],
)
def test_sizes_are_asked_for_where_they_are_known_and_matter(
    before: list[dict[str, Any]], scheme: str, format_: str, is_asked: bool
) -> None:
    assert bool(fetch_work(asked(Path("model"), {"scheme": scheme}, format_, *before)).grouping) == is_asked


@pytest.mark.parametrize(
    ("before", "window", "format_", "is_asked"),
    [
        ([], WINDOW, "gguf", True),
        ([], WINDOW, "onnx", True),
        ([], WINDOW, "dense", False),
        ([{"technique": "distill", "steps": 1}], WINDOW, "gguf", True),
        ([{**PRUNE, "ffn": {"ratio": 0.5}}], WINDOW, "gguf", True),
        ([{**PRUNE, "depth": 1}], WINDOW, "gguf", False),  # layers that cannot have one may go
        ([], {**WINDOW, "sinks": 4}, "gguf", False),  # refused before anything is fetched
    ],
)
def test_a_window_is_tried_where_the_source_tells(
    before: list[dict[str, Any]], window: dict[str, Any], format_: str, is_asked: bool
) -> None:
    recipe = recipe_from(recipe_for(Path("model"), *before, window, target={"format": format_}))
    assert bool(fetch_work(recipe).windowing) == is_asked


@pytest.mark.parametrize(
    ("family", "extras", "layers", "expected"),
    [
        ("Mistral", {"sliding_window": None}, "all", False),
        ("Mistral", {"sliding_window": None}, (0,), True),
        ("Llama", {}, "all", True),
        ("Qwen3", {}, "all", True),
    ],
)
def test_what_is_said_of_a_window_early_comes_true(
    family: str, extras: dict[str, Any], layers: Any, expected: bool, stdlib_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    model = make_model(family, extras, tmp_path / "model", stdlib_model)
    technique = AttentionWindow(window=4, sinks=0, layers=layers)
    windowing = Windowing(technique=technique, exports={"/target": Gguf()})
    assert needs_conditions(model, windowing, "text-generation", tmp_path / "tried") == expected
    run = run_of(model, model, tmp_path / "out")
    set_window(run, technique)
    assert (run.out / "conditional.json").exists() == expected


def test_a_window_that_a_graph_would_leave_out_is_refused(stdlib_model: Path, tmp_path: Path) -> None:
    """ONNX Runtime GenAI's builder writes Mistral's attention without the window of its configuration."""
    (tmp_path / "model").mkdir()
    model = make_model("Mistral", {"sliding_window": None}, tmp_path / "model", stdlib_model)
    technique, run = AttentionWindow(window=4, sinks=0), run_of(model, model, tmp_path / "out")
    windowing = Windowing(technique=technique, exports={"/target": Onnx()})
    with pytest.raises(RecipeError, match="a window of 4 of 512 tokens, which it leaves out") as early:
        needs_conditions(model, windowing, "text-generation", tmp_path / "tried")
    set_window(run, technique)
    with pytest.raises(RecipeError) as late:
        Onnx().write(run_of(model, run.out, tmp_path / "written"))
    assert early.value.failure("") == late.value.failure("")


@pytest.mark.parametrize(
    ("chain", "also", "message", "field"),
    [
        ([WINDOW], [{"format": "gguf"}], "Attention window says in conditional.json .* GGUF .* llama.cpp", "/also/0"),
        ([{**QUICK, "scheme": "fp8_block"}], [{"format": "modelopt"}], TILE, "/also/0"),
    ],
)
def test_no_work_is_lost(
    chain: list[dict[str, Any]],
    also: list[dict[str, Any]],
    message: str,
    field: str,
    tiny_model: MakeModel,
    tmp_path: Path,
) -> None:
    document = recipe_for(tiny_model("Llama"), *chain, target={"format": "dense"}, also=also)
    events = list[AnyEvent]()
    with stages_in_this_process(), pytest.raises(OptError, match=message) as found:
        optimize(recipe_from(document), tmp_path / "out", tmp_path / "work", events.append)
    failure = found.value.failure("")
    assert (failure.kind, failure.field) == ("user_error", f"{field}/format")
    assert [event.stage for event in events if isinstance(event, StageStarted)] == ["0-fetch"]
