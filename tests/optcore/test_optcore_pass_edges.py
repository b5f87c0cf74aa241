"""The quantization pass where models and recipes are unlike most: what must not be lost, or be computed wrongly."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.exporting import described, export, plain, run_of
from fixtures.tiny_models import EXTRAS, SIZES, MakeModel
from safetensors.torch import load_file
from torch import nn

from optcore.calibration.statistics import Observer
from optcore.coverage import coverage
from optcore.errors import OutOfDisk, RecipeError
from optcore.export import CompressedTensors, Dense
from optcore.streaming.decoder import Decoder
from optcore.streaming.experts import Experts
from optcore.streaming.groups import probe_state
from optcore.streaming.quantized import QuantizedCheckpoint
from optcore.streaming.simulate import Simulation
from optcore.techniques import Ptq

pytestmark = pytest.mark.timeout(600)


def quantized(model: Path, out: Path, scheme: str, **more: Any) -> Path:
    """The folder of a quantized checkpoint; a second call goes on with what the first left."""
    torch.set_num_threads(1)
    Ptq.model_validate({"scheme": scheme, **more}).apply(run_of(model, model, out))
    return out


def test_outlier_columns_meet_the_weight_that_their_input_is_for(stdlib_model: Path, tmp_path: Path) -> None:
    """LLM.int8 multiplies outliers by dense weights, which no smoothing may have moved away from."""
    smoothed = quantized(stdlib_model, tmp_path / "a", "llm_int8", smoothing="smoothquant", smoothing_alpha=0.5)
    assert not any(layer.changed for layer in described(smoothed).layers)


def test_text_is_measured_when_a_later_layer_alone_needs_it(tiny_model: MakeModel, tmp_path: Path) -> None:
    override = {"modules": "re:model\\.layers\\.1\\.", "scheme": "fp8"}
    settings = plain("int8", overrides=[override]).model_dump(exclude={"scheme"})
    checkpoint = QuantizedCheckpoint(quantized(tiny_model("Llama"), tmp_path / "out", "int8", **settings))
    scale = checkpoint.input_scale("model.layers.1.mlp.down_proj")
    assert scale is not None
    assert 0 < scale.item() < 0.5  # 1 is what an input that was never seen gets


def test_a_pass_that_was_killed_at_its_very_end_ends_well(tiny_model: MakeModel, tmp_path: Path) -> None:
    """The dense weights are linked already: they cannot be copied onto themselves."""
    model = tiny_model("Llama")
    settings = plain("int8").model_dump(exclude={"scheme"})
    first = quantized(model, tmp_path / "out", "int8", **settings)
    kept = (first / "quantization.json").read_bytes()
    (first / "quantization.json").unlink()
    assert (quantized(model, tmp_path / "out", "int8", **settings) / "quantization.json").read_bytes() == kept
    assert (first / "model.safetensors").samefile(model / "model.safetensors")


def test_room_for_what_is_written_already_is_not_asked_for_again(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("Llama")
    settings = plain("int8").model_dump(exclude={"scheme"})
    out = quantized(model, tmp_path / "out", "int8", **settings)
    written = sum(path.stat().st_size for path in out.glob("quantized-*"))
    free = shutil.disk_usage(tmp_path)._replace(free=(model / "model.safetensors").stat().st_size - written)
    monkeypatch.setattr("optcore.calibration.quantize.shutil.disk_usage", lambda path: free)
    quantized(model, out, "int8", **settings)
    with pytest.raises(OutOfDisk):
        quantized(model, tmp_path / "new", "int8", **settings)


def test_a_recipe_that_leaves_nothing_to_quantize_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no linear layer is left"):
        quantized(tiny_model("Llama"), tmp_path / "out", "int8", ignore=["re:.*"])


@pytest.mark.parametrize("family", ["GptOss", "Qwen3Next"])
def test_an_attentions_own_tensors_survive_beside_a_quantized_cache(
    family: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    """gpt-oss's sinks and the decay of a linear attention lie where the scales of keys and values do."""
    model = tiny_model(family)
    settings = plain("int8", kv_cache="fp8", ignore=["re:.*experts"]).model_dump(exclude={"scheme"})
    checkpoint = quantized(model, tmp_path / "checkpoint", "int8", **settings)
    written = export(Dense(), checkpoint, tmp_path / "out", model).names
    own = {name for name in load_file(model / "model.safetensors") if name.count(".") == 4 and "attn." in name}
    assert own
    assert own <= written
    with_cache = [Decoder(model).has_key_value_cache(index) for index in range(2)]
    assert [bool(layer.attention) for layer in described(checkpoint).layers] == with_cache


def test_experts_that_were_given_other_tokens_ask_for_no_correction() -> None:
    """X^T Z pairs a token with itself in the original model; a token without a counterpart stands for itself."""
    torch.manual_seed(0)
    layer = nn.Module()
    layer.experts = Experts(_fused_experts())
    group = ("experts.0.gate_proj", "experts.0.up_proj")
    observer = Observer(layer, [group], gram=True, cross=[group])
    x_TH, z_TH, weights = torch.randn(4, 64), torch.randn(4, 64), torch.ones(4, 1)
    with observer.remembering():
        layer.experts(z_TH, torch.tensor([[0], [0], [1], [1]]), weights)
    with observer.measuring():
        layer.experts(x_TH, torch.tensor([[1], [0], [0], [1]]), weights)
    found = observer.finished()[group]
    expected_KK = (torch.outer(x_TH[1], z_TH[1]) + torch.outer(x_TH[2], x_TH[2])) / 2
    assert found.cross_KK is not None
    torch.testing.assert_close(found.cross_KK, expected_KK, atol=1e-2, rtol=1e-2)


def _fused_experts() -> nn.Module:
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    return Qwen3MoeExperts(Qwen3MoeConfig(**{**SIZES, **EXTRAS["Qwen3Moe"], "hidden_size": 64}))


def test_ignored_experts_in_one_tensor_take_their_norms_scale(stdlib_model: Path, tmp_path: Path) -> None:
    """A shared expert's smoothing divides the norm that the experts read too."""
    from transformers import GraniteMoeSharedConfig, GraniteMoeSharedForCausalLM

    torch.manual_seed(5)
    more = {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 128}
    dense = GraniteMoeSharedForCausalLM(GraniteMoeSharedConfig(**{**SIZES, **more})).to(torch.bfloat16)
    model = tmp_path / "model"
    dense.save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(stdlib_model / name, model / name)
    checkpoint = quantized(
        model,
        tmp_path / "out",
        "int8",
        ignore=["re:.*experts"],
        smoothing="smoothquant",
        smoothing_alpha=0.5,
        rounding="nearest",
    )
    description = described(checkpoint)
    assert not any("experts" in name for name in description.linears)
    assert any("block_sparse_moe.input_linear" in name for name in description.layers[0].changed)
    assert any("experts.0.w1" in name for name in description.ignored)
    decoder, simulation = Decoder(model), Simulation(checkpoint)
    state = probe_state(decoder)
    with decoder.layer(0) as layer:
        plainly = decoder.forward(0, layer, state).hidden_BTH
        with simulation.applied(decoder, 0, layer):
            changed = decoder.forward(0, layer, state).hidden_BTH
    assert (changed - plainly).norm() / (plainly - state.hidden_BTH).norm() < 0.02


@pytest.mark.parametrize("family", ["GptOss", "GraniteMoe", "Mixtral"])
def test_experts_of_one_tensor_are_reported_as_quantized(family: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model(family)
    settings = plain("int8").model_dump(exclude={"scheme"})
    checkpoint = quantized(model, tmp_path / "checkpoint", "int8", **settings)
    export(CompressedTensors(), checkpoint, tmp_path / "out", model)
    found = coverage(described(checkpoint), model, tmp_path / "out")
    experts = [row for row in found.classes if "experts" in row.name]
    assert experts
    assert all(row.quantized == row.parameters and row.schemes == ("int8",) for row in experts)
    assert all(0.5 <= row.result_bytes / row.source_bytes < 0.55 for row in experts)
    assert sum(row.source_bytes for row in found.classes) == sum(
        t.nbytes for t in load_file(model / "model.safetensors").values()
    )


def test_a_dense_result_whose_experts_no_reader_would_find_is_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model("GptOss")
    settings = plain("int8").model_dump(exclude={"scheme"})
    checkpoint = quantized(model, tmp_path / "checkpoint", "int8", **settings)
    with pytest.raises(RecipeError, match="all experts of a layer in one tensor"):
        export(Dense(), checkpoint, tmp_path / "out", model)
