"""Linear layers as products of thin matrices: the algebra, the ranks, and the checkpoint that comes of it."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from fixtures.exporting import run_of
from fixtures.tiny_models import MakeModel
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from optcore.algorithms.low_rank import factorized, singular_values, whitener
from optcore.algorithms.rank_allocation import Ranks, Shape, global_ranks, uniform_ranks
from optcore.errors import RecipeError
from optcore.export.dense import Dense
from optcore.factored import DESCRIPTION, FACTORS, load_factored
from optcore.plan import check
from optcore.recipe import recipe_from
from optcore.run import Run
from optcore.sizes import weight_bytes, weight_files
from optcore.streaming.reader import TensorReader
from optcore.techniques.low_rank import LowRank


def _problem(seed: int, outputs: int = 12, inputs: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and correlated inputs [T, K] whose channels differ by orders of magnitude, float64."""
    generator = torch.Generator().manual_seed(seed)
    weight_NK = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    mixing_KK = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    scale_K = torch.logspace(-1, 1, inputs, dtype=torch.float64)
    return weight_NK, torch.randn(400, inputs, generator=generator, dtype=torch.float64) @ (mixing_KK * scale_K)


def _output_loss(weight_NK: torch.Tensor, other_NK: torch.Tensor, x_TK: torch.Tensor) -> float:
    return float((x_TK @ (weight_NK - other_NK).mT).square().sum() / len(x_TK))


def _least_loss(weight_NK: torch.Tensor, x_TK: torch.Tensor, rank: int) -> float:
    """Of all matrices of a rank: the small eigenvalues of the outputs' Gram matrix, with no factor of the inputs'."""
    output_TN = x_TK @ weight_NK.mT
    return float(torch.linalg.eigvalsh(output_TN.mT @ output_TN / len(x_TK))[:-rank].sum())


@pytest.mark.parametrize("shape", [(12, 16), (16, 12)])
def test_full_rank_is_the_matrix(shape: tuple[int, int]) -> None:
    weight_NK, x_TK = _problem(0, *shape)
    for lower_KK in (None, whitener(x_TK.mT @ x_TK / len(x_TK))):
        product_NK = factorized(weight_NK.float(), lower_KK, min(shape)).product_NK
        torch.testing.assert_close(product_NK, weight_NK.float().double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 7, 11])
def test_plain_factors_are_the_truncated_svd(rank: int) -> None:
    weight_NK, _ = _problem(1)
    u, s, v = torch.linalg.svd(weight_NK, full_matrices=False)
    factors = factorized(weight_NK, None, rank)
    torch.testing.assert_close(factors.product_NK, u[:, :rank] * s[:rank] @ v[:rank])
    assert torch.linalg.matrix_rank(factors.product_NK) == rank
    torch.testing.assert_close(factors.left_NR.norm(dim=0), factors.right_RK.norm(dim=1))


@pytest.mark.parametrize(("seed", "rank"), list(itertools.product(range(4), (1, 3, 7, 11))))
def test_whitened_factors_have_the_least_output_loss(seed: int, rank: int) -> None:
    weight_NK, x_TK = _problem(seed)
    lower_KK = whitener(x_TK.mT @ x_TK / len(x_TK))
    whitened = _output_loss(weight_NK, factorized(weight_NK, lower_KK, rank).product_NK, x_TK)
    plain = _output_loss(weight_NK, factorized(weight_NK, None, rank).product_NK, x_TK)
    least = _least_loss(weight_NK, x_TK, rank)
    assert least * (1 - 1e-9) <= whitened <= least * 1.01
    assert whitened < plain
    values_R = singular_values(weight_NK, lower_KK)
    assert float(values_R[rank:].square().sum()) == pytest.approx(least, rel=0.2)


def test_no_other_factors_are_better() -> None:
    """Alternating least squares from random starts, which knows no decomposition, comes as near and no nearer."""
    weight_NK, x_TK = _problem(5, 6, 8)
    lower_KK = whitener(x_TK.mT @ x_TK / len(x_TK))
    ours = _output_loss(weight_NK, factorized(weight_NK, lower_KK, 2).product_NK, x_TK)
    target_TN, found = x_TK @ weight_NK.mT, []
    for seed in range(5):
        left_NR = torch.randn(6, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for _ in range(300):
            right_RK = torch.linalg.lstsq(x_TK, target_TN @ torch.linalg.pinv(left_NR).mT).solution.mT
            left_NR = torch.linalg.lstsq(x_TK @ right_RK.mT, target_TN).solution.mT
        found.append(_output_loss(weight_NK, left_NR @ right_RK, x_TK))
    assert ours == pytest.approx(min(found), rel=1e-3)


def test_inputs_that_never_occur_cost_nothing() -> None:
    weight_NK, x_TK = _problem(6)
    x_TK[:, ::2] = 0
    weight_NK[:, ::2] *= 1000  # what plain factors would spend all of their rank on
    lower_KK = whitener((x_TK.mT @ x_TK / len(x_TK)).float())
    assert lower_KK is not None
    product_NK = factorized(weight_NK, lower_KK, 8).product_NK
    assert _output_loss(weight_NK, product_NK, x_TK) < 0.5 * _output_loss(
        weight_NK, factorized(weight_NK, None, 8).product_NK, x_TK
    )
    assert product_NK.abs().amax() <= 10 * weight_NK.abs().amax()


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_what_is_no_gram_matrix_has_no_whitener(value: float) -> None:
    assert whitener(torch.full((4, 4), value)) is None


def test_a_zero_weight_stays_zero() -> None:
    assert not factorized(torch.zeros(4, 6), None, 2).product_NK.any()


def _energy(ranks: Ranks, spectra: dict[str, torch.Tensor], multiple: int) -> float:
    """What is lost, as shares of each matrix' energy behind its first components."""
    cut = {name: (rank, spectra[name].square()) for name, rank in ranks.items() if rank is not None}
    return sum(float(energy_R[rank:].sum() / energy_R[multiple:].sum()) for rank, energy_R in cut.values())


def _brute(shapes: dict[str, Shape], spectra: dict[str, torch.Tensor], budget: int, multiple: int) -> float:
    choices = [[*range(multiple, shape.largest(multiple) + 1, multiple), None] for shape in shapes.values()]
    all_ranks = (dict(zip(shapes, ranks, strict=True)) for ranks in itertools.product(*choices))
    return min(_energy(ranks, spectra, multiple) for ranks in all_ranks if _count(shapes, ranks) <= budget)


def _count(shapes: dict[str, Shape], ranks: Ranks) -> int:
    return sum(shape.count(ranks[name]) for name, shape in shapes.items())


@pytest.mark.parametrize("multiple", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_global_ranks_against_every_choice(seed: int, multiple: int) -> None:
    """Greedy is often the optimum, never far from it, and never worse than equal shares."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": Shape(12, 12), "b": Shape(16, 10), "c": Shape(12, 20), "d": Shape(10, 10)}
    spectra = {
        name: torch.rand(min(shape), generator=generator).exp().pow(1 + 3 * seed).sort(descending=True).values
        for name, shape in shapes.items()
    }
    total = sum(shape.parameters for shape in shapes.values())
    optimal = 0
    for keep in (0.45, 0.6, 0.75, 0.9, 0.99):
        ranks = global_ranks(shapes, spectra, keep, multiple)
        count = _count(shapes, ranks)
        assert count <= keep * total
        lost, least = _energy(ranks, spectra, multiple), _brute(shapes, spectra, int(keep * total), multiple)
        assert least - 1e-9 <= lost <= least + 0.25
        assert lost <= _energy(uniform_ranks(shapes, keep, multiple), spectra, multiple) + 1e-9
        if lost < least + 1e-9:
            optimal += 1
    assert optimal >= 2


def test_equal_shapes_are_shared_out_exactly() -> None:
    """All steps cost the same there, so greedy is optimal; a flat spectrum loses to a steep one."""
    shapes = {"flat": Shape(8, 8), "steep": Shape(8, 8)}
    spectra = {"flat": torch.ones(8), "steep": 2.0 ** -torch.arange(8)}
    ranks = global_ranks(shapes, spectra, 0.5, 1)
    assert _energy(ranks, spectra, 1) == pytest.approx(_brute(shapes, spectra, 64, 1))
    assert global_ranks(shapes, spectra, 0.9, 1)["flat"] is None


def test_a_rank_that_saves_nothing_is_refused() -> None:
    """4 x 4 of rank 2 has 16 parameters as well; of rank 1 it has 8."""
    assert Shape(4, 4).largest(1) == 1
    assert Shape(1, 9).largest(1) == 0
    shapes = {"square": Shape(4, 4), "row": Shape(1, 9)}
    assert uniform_ranks(shapes, 0.99, 1) == {"square": 1, "row": None}
    assert uniform_ranks(shapes, 1.0, 1) == {"square": None, "row": None}
    spectra = {"square": torch.ones(4), "row": torch.ones(1)}
    assert global_ranks(shapes, spectra, 1.0, 1) == {"square": None, "row": None}
    for keep in (0.7, 0.8, 0.95):
        assert all(
            shape.count(uniform_ranks(shapes, keep, 1)[name]) <= shape.parameters for name, shape in shapes.items()
        )
    with pytest.raises(RecipeError, match="too small"):
        global_ranks(shapes, spectra, 0.1, 1)


@pytest.mark.parametrize("keep", [0, -0.5, 1.0001, float("nan"), float("inf"), "much", None])
def test_a_share_is_a_share(keep: object) -> None:
    with pytest.raises(ValidationError):
        LowRank.model_validate({"keep": keep})


@pytest.mark.parametrize("settings", [{"multiple": 0}, {"ignore": ["re:("]}, {"method": "cur"}, {"rank": 8}])
def test_settings_that_are_none(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LowRank.model_validate(settings)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("method", ["svd", "whitened"])
def test_weights_are_the_products_of_the_factors(
    method: str, allocation: str, stdlib_model: Path, tmp_path: Path
) -> None:
    run = _factorize(stdlib_model, tmp_path / "out", method=method, allocation=allocation, keep=0.6)
    found = load_factored(run.out)
    assert found
    before, after, factors = (load_file(path) for path in _files(stdlib_model, run.out))
    assert 0.5 < found.kept <= 0.6
    assert sum(tensor.numel() for tensor in factors.values()) == sum(
        tensor.parameters_after for tensor in found.tensors.values()
    )
    for name, tensor in found.tensors.items():
        module = name.removesuffix(".weight")
        left, right = factors[f"{module}.left"], factors[f"{module}.right"]
        assert left.shape == (tensor.shape[0], tensor.rank)
        assert right.shape == (tensor.rank, tensor.shape[1])
        assert left.dtype == right.dtype == after[name].dtype == before[name].dtype
        assert (left.double() @ right.double()).to(after[name].dtype).equal(after[name])
        assert tensor.parameters_after < tensor.parameters_before
    assert before.keys() == after.keys()
    untouched = before.keys() - found.tensors.keys()
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= untouched
    assert all(before[name].equal(after[name]) for name in untouched)
    assert "lm_head.weight" not in after  # it is tied to the embeddings, and stays so


def test_ranks_are_what_the_document_says(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Stored in float32, the products have no singular value behind their rank that rounding does not explain."""
    source = _float32(tiny_model("Qwen2"), tmp_path / "source")
    run = _factorize(source, tmp_path / "out", keep=0.7)
    found, tensors = load_factored(run.out), load_file(run.out / "model.safetensors")
    assert found
    assert found.tensors
    for name, tensor in found.tensors.items():
        values_R = torch.linalg.svdvals(tensors[name].double())
        assert values_R[tensor.rank - 1] > 1e-3 * values_R[0]
        assert values_R[tensor.rank :].amax() < 1e-5 * values_R[0]
    before = load_file(source / "model.safetensors")
    biases = [name for name in before if name.endswith(".bias")]
    assert biases
    assert all(before[name].equal(tensors[name]) for name in biases)


def test_everything_kept_is_the_model_itself(stdlib_model: Path, tmp_path: Path) -> None:
    run = _factorize(stdlib_model, tmp_path / "out", keep=1)
    before, after = (load_file(folder / "model.safetensors") for folder in (stdlib_model, run.out))
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    assert not (run.out / FACTORS).exists()
    assert "42 linear layers were left whole" in str(run.results["notices"])
    assert run.results["low_rank"]["kept"] == 1  # type: ignore[index]


def test_too_small_a_share_and_unknown_names_end_at_once(stdlib_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="too small"):
        _factorize(stdlib_model, tmp_path / "a", keep=1e-9)
    with pytest.raises(RecipeError, match="matches no linear layer"):
        _factorize(stdlib_model, tmp_path / "b", ignore=["model.layers.99.mlp"])
    with pytest.raises(RecipeError, match="no linear layer is left"):
        _factorize(stdlib_model, tmp_path / "c", ignore=["re:.*"])
    assert not any(tmp_path.glob("*/*.safetensors"))


def test_ignored_layers_stay(stdlib_model: Path, tmp_path: Path) -> None:
    run = _factorize(stdlib_model, tmp_path / "out", method="svd", ignore=["re:.*self_attn"])
    found = load_factored(run.out)
    assert found
    assert found.tensors
    assert not any("self_attn" in name for name in (*found.tensors, *found.whole))


@pytest.mark.parametrize("family", ["Mixtral", "GptOss"])
def test_experts_are_linears_too(family: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    run = _factorize(tiny_model(family), tmp_path / "out", allocation="uniform", keep=0.5)
    found = load_factored(run.out)
    assert found
    assert sum(".experts.1." in name for name in found.tensors) == 6  # three of each layer
    assert not any("router" in name or name.endswith("gate.weight") for name in found.tensors)
    model, info = AutoModelForCausalLM.from_pretrained(run.out, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    with torch.no_grad():
        assert model(torch.arange(8)[None]).logits.isfinite().all()


def test_the_dense_export_carries_the_factors_on(stdlib_model: Path, tmp_path: Path) -> None:
    run = _factorize(stdlib_model, tmp_path / "low", method="svd", allocation="uniform", keep=0.5)
    exported = run_of(stdlib_model, run.out, tmp_path / "out")
    Dense().write(exported)
    for name in (FACTORS, DESCRIPTION):
        assert (exported.out / name).read_bytes() == (run.out / name).read_bytes()
    assert [path.name for path in weight_files(exported.out)] == ["model.safetensors"]
    assert weight_bytes(exported.out) == pytest.approx(weight_bytes(stdlib_model), rel=0.01)
    assert (exported.out / FACTORS).stat().st_size < 0.6 * weight_bytes(exported.out)
    index = json.loads((exported.out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == load_file(stdlib_model / "model.safetensors").keys()
    assert TensorReader(exported.out).names == sorted(index["weight_map"])
    plain = run_of(stdlib_model, stdlib_model, tmp_path / "plain")
    Dense().write(plain)
    assert not (plain.out / DESCRIPTION).exists()


@pytest.mark.parametrize("after", [{"technique": "ptq", "scheme": "int4"}, {"technique": "heal"}])
def test_nothing_may_follow_that_would_lose_the_rank(after: dict[str, object]) -> None:
    document = {"model": {"path": "m"}, "chain": [{"technique": "low_rank"}, after], "target": {"format": "dense"}}
    with pytest.raises(RecipeError, match="the low rank would be lost") as caught:
        check(recipe_from(document))
    assert caught.value.field == "/chain/1"
    check(recipe_from({**document, "chain": document["chain"][:1]}))  # type: ignore[index]


def _factorize(source: Path, out: Path, **settings: object) -> Run:
    run = run_of(source, source, out)
    LowRank.model_validate(settings).apply(run)
    return run


def _files(source: Path, out: Path) -> tuple[Path, Path, Path]:
    return source / "model.safetensors", out / "model.safetensors", out / FACTORS


def _float32(source: Path, folder: Path) -> Path:
    """A copy stored in float32."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.save_pretrained(folder)
    for path in source.glob("token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder
