"""Sizes that a later format's groups do not divide are refused before any work, and nothing else is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import plain, run_of
from fixtures.tiny_models import EXTRAS, MakeModel

from optcore.errors import RecipeError
from optcore.fetching import fetch_work
from optcore.recipe import Recipe
from optcore.restructure.grouping import check_grouping
from optcore.stage import Grouping, Inputs, StageTask
from optcore.stages import perform
from optcore.techniques import Prune

FFN_192, HIDDEN_96 = {"ffn": {"ratio": 0.25}}, {"hidden": {"ratio": 0.25}}  # of 256 and 128
QUICK = {"order": "random", "rescale": False, "ends": True}
DOWN, ALL_BUT_DOWN = "re:.*down_proj", "re:.*(q|k|v|o|gate|up)_proj"
DISTILL: dict[str, Any] = {"technique": "distill", "steps": 1}


@pytest.mark.parametrize(
    ("family", "prune", "scheme", "more", "message"),
    [
        ("Llama", FFN_192, "int4", {}, "down_proj will be left with 192 inputs, which groups of 128 do not"),
        ("Llama", FFN_192, "int4", {"ignore": [DOWN]}, ""),
        ("Llama", FFN_192, "int4", {"overrides": [{"modules": DOWN, "scheme": "int4_g64"}]}, ""),
        ("Llama", FFN_192, "int4_g64", {}, ""),
        ("Llama", FFN_192, "fp8_dynamic", {}, ""),
        ("Llama", {**FFN_192, "multiple": 128}, "int4", {}, ""),  # 256 stay, the nearest multiple
        ("Llama", {"ffn": {"size": 128}}, "int4", {}, ""),
        ("Llama", {"ffn": {"size": 120}}, "nvfp4", {"ignore": ["re:.*q_proj"]}, "left with 120 inputs"),
        ("Llama", HIDDEN_96, "int4_g64", {}, r"q_proj will be left with 96 inputs"),
        ("Llama", HIDDEN_96, "int4_g64", {"ignore": ["re:.*(q|k|v|gate|up)_proj"]}, ""),
        ("Llama", {"heads": {"size": 2}}, "int4", {}, "o_proj will be left with 64 inputs"),
        ("Llama", {"heads": {"size": 2}, "masked": True}, "int4", {}, ""),
        ("Llama", {"depth": 1, **FFN_192}, "int4", {"ignore": [ALL_BUT_DOWN]}, r"layers\.0\.mlp.down_proj will be"),
        ("Llama", {"depth": 1, **FFN_192}, "int4", {"ignore": ["model.layers.0.mlp.down_proj"]}, ""),
        ("Mixtral", FFN_192, "int4", {}, r"experts\.0\.w2 will be left with 192"),
        ("GptOss", FFN_192, "int4", {}, r"down_proj will be left with 192"),
        ("Mixtral", {"experts": {"size": 2}}, "int4", {}, ""),
    ],
)
def test_it_refuses_what_quantization_would(
    family: str,
    prune: dict[str, Any],
    scheme: str,
    more: dict[str, Any],
    message: str,
    tiny_model: MakeModel,
    tmp_path: Path,
) -> None:
    torch.set_num_threads(1)
    source, technique = tiny_model(family), Prune.model_validate({**QUICK, **prune})
    grouping = Grouping(prunes=(technique,), ptq=plain(scheme, **more), place="/chain/2")
    pruned = run_of(source, source, tmp_path / "pruned")
    technique.apply(pruned)
    quantized = run_of(source, pruned.out, tmp_path / "quantized")
    if not message:
        check_grouping(source, grouping, tmp_path / "asked")
        grouping.ptq.apply(quantized)
        return
    with pytest.raises(RecipeError, match=message) as early:
        check_grouping(source, grouping, tmp_path / "asked")
    with pytest.raises(RecipeError) as late:
        grouping.ptq.apply(quantized)
    assert early.value.message.replace("will be left with", "has") == late.value.message
    assert early.value.field == "/chain/2"
    assert "`multiple: " in early.value.remedy


def test_a_layer_that_may_be_another_one_is_left_to_quantization(tiny_model: MakeModel, tmp_path: Path) -> None:
    """DeepSeek's first layer is dense: which sizes layer 0 has once one is left out depends on the one."""
    assert EXTRAS["DeepseekV3"]["first_k_dense_replace"] == 1
    source, ptq = tiny_model("DeepseekV3"), plain("int4", ignore=["re:.*self_attn.*"])
    for depth, is_known in ((0, True), (1, False)):
        prune = Prune.model_validate({**QUICK, "depth": depth, "ffn": {"ratio": 0.25}})
        grouping = Grouping(prunes=(prune,), ptq=ptq, place="/chain/1")
        if is_known:
            with pytest.raises(RecipeError, match="192"):
                check_grouping(source, grouping, tmp_path / "asked")
        else:
            check_grouping(source, grouping, tmp_path / "asked")


@pytest.mark.parametrize(
    ("chain", "is_asked"),
    [
        ([{"technique": "prune", **FFN_192}, DISTILL, {"technique": "ptq", "scheme": "int4"}], True),
        (
            [
                {"technique": "prune", "depth": 1},
                {"technique": "prune", **FFN_192},
                {"technique": "ptq", "scheme": "nvfp4"},
            ],
            True,
        ),
        ([{"technique": "prune", **FFN_192}, {"technique": "rotate"}, {"technique": "ptq", "scheme": "int4"}], True),
        ([DISTILL, {"technique": "sparsify"}, {"technique": "ptq", "scheme": "int4", "rounding": "nearest"}], True),
        ([DISTILL, {"technique": "ptq", "scheme": "fp8"}], False),
        ([{"technique": "ptq", "scheme": "int4"}], False),  # it asks at once itself
        ([{**DISTILL, "student": {"id": "an/other"}}, {"technique": "ptq", "scheme": "int4"}], False),
        ([{"technique": "prune", "target": {"params": 0.7}}, {"technique": "ptq", "scheme": "int4"}], False),
        ([{"technique": "prune", **FFN_192}] * 2 + [{"technique": "ptq", "scheme": "int4"}], False),
        ([{"technique": "prune", **FFN_192}], False),
    ],
)
def test_what_is_asked_is_what_the_sizes_of_the_source_say(chain: list[dict[str, Any]], is_asked: bool) -> None:
    recipe = Recipe.model_validate({"model": {"path": "/model"}, "chain": chain, "target": {"format": "dense"}})
    found = fetch_work(recipe).grouping
    assert (found is not None) == is_asked
    if found:
        assert found.place == f"/chain/{len(chain) - 1}"
        assert len(found.prunes) == sum(entry["technique"] == "prune" for entry in chain)


def test_the_fetch_refuses_it(stdlib_model: Path, tmp_path: Path) -> None:
    chain = [{"technique": "prune", "width": 0.2}, DISTILL, {"technique": "ptq", "scheme": "int4"}]
    document = {"model": {"path": str(stdlib_model)}, "chain": chain}
    document["calibration"] = {"dataset": "python-stdlib", "samples": 2, "sequence_length": 32}
    recipe = Recipe.model_validate(document)
    paths = {name: str(tmp_path / name) for name in ("out", "scratch", "journal", "cache")}
    task = StageTask(name="0-fetch", work=fetch_work(recipe), inputs=Inputs(calibration=recipe.calibration), **paths)
    with pytest.raises(RecipeError, match=r"will be left with \d+ inputs, which groups of 128 do not divide"):
        perform(task, lambda event: None)
