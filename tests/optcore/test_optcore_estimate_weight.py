"""What a chain's result is counted to weigh before any work, and where that is left open."""

import json
from pathlib import Path
from typing import Any

import pytest

from optcore.estimate.facts import ModelFacts, from_folder, from_headers
from optcore.estimate.weight import weigh
from optcore.recipe import Recipe, recipe_from
from optcore.sizes import tensor_sizes

PTQ = {"technique": "ptq", "scheme": "fp8"}
DISTILL = {"technique": "distill"}
DENSE = {"target": {"format": "dense"}}
SHORTER = {"technique": "prune", "depth": 1}


def recipe(*chain: dict[str, Any], **changes: Any) -> Recipe:
    return recipe_from({"model": {"id": "a/b"}, "chain": chain, **changes})


@pytest.fixture
def facts(stdlib_model: Path) -> ModelFacts:
    return from_folder(stdlib_model)


def size(facts: ModelFacts, *chain: dict[str, Any], **changes: Any) -> int | None:
    found = weigh(recipe(*chain, **changes), facts)
    return found.size if found else None


def test_sizes_are_counted_from_headers(facts: ModelFacts, stdlib_model: Path) -> None:
    tensors = tensor_sizes(stdlib_model / "model.safetensors")
    whole = sum(size for _, size in tensors.values())
    last = sum(size for name, (_, size) in tensors.items() if ".layers.5." in name)
    assert size(facts, DISTILL, **DENSE) == pytest.approx(whole, rel=0.001)
    assert size(facts, SHORTER, DISTILL, **DENSE) == pytest.approx(whole - last, rel=0.001)
    values = sum(one.elements for one in facts.linears)
    scales = sum(one.matrix[0] for one in facts.linears)
    in_eight_bits = whole - values + 2 * scales
    assert size(facts, {"technique": "ptq", "scheme": "int8_w8a16"}) == pytest.approx(in_eight_bits, rel=0.003)


def test_what_is_not_counted_is_left_open(facts: ModelFacts) -> None:
    assert size(facts, {"technique": "prune", "width": 0.25}, DISTILL, **DENSE) is None
    assert size(facts, {**PTQ, "overrides": [{"modules": "re:.*down.*", "scheme": None}]}) is None
    assert size(facts, {"technique": "auto_quantize", "effective_bits": 5}) is None
    assert size(facts, DISTILL, target={"format": "compact"}) is None
    assert size(facts, {"technique": "ptq", "scheme": "int4_g32"}, target={"format": "onnx"}) is None


def test_a_model_that_formulas_do_not_know_is_left_open(facts: ModelFacts) -> None:
    headers = {one.name: (one.shape, "BF16") for one in facts.tensors}
    assert weigh(recipe(PTQ), from_headers({"model_type": "never_met"}, headers)) is None


def test_layers_that_differ_are_not_pruned_by_count(facts: ModelFacts, stdlib_model: Path) -> None:
    config = json.loads((stdlib_model / "config.json").read_text())
    headers = {one.name: (one.shape, "BF16") for one in facts.tensors}
    unlike = from_headers(config, {**headers, "model.layers.0.mlp.extra_proj.weight": ((64, 256), "BF16")})
    assert size(unlike, SHORTER, DISTILL, **DENSE) is None
    assert size(unlike, DISTILL, **DENSE)


def test_values_of_32_bits_are_counted_as_such(facts: ModelFacts, stdlib_model: Path) -> None:
    config = json.loads((stdlib_model / "config.json").read_text())
    wide = from_headers(config, {one.name: (one.shape, "F32") for one in facts.tensors})
    assert size(wide, DISTILL, **DENSE) == pytest.approx(2 * (size(facts, DISTILL, **DENSE) or 0), rel=0.001)
