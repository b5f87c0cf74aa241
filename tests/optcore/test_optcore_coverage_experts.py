"""Experts that a checkpoint holds in one tensor, one by one: names, slices, counts of tokens."""

from pathlib import Path

import pytest
import torch
from fixtures.tiny_models import EXTRAS, MakeModel, make_model
from torch import nn

from optcore.streaming.decoder import Decoder
from optcore.streaming.experts import Experts
from optcore.streaming.groups import fused_groups, linears, probe_state

FAMILIES = {
    "Mixtral": ("block_sparse_moe.experts", ("w1", "w3", "w2")),
    "Qwen3Moe": ("mlp.experts", ("gate_proj", "up_proj", "down_proj")),
    "DeepseekV3": ("mlp.experts", ("gate_proj", "up_proj", "down_proj")),
    "GptOss": ("mlp.experts", ("gate_proj", "up_proj", "down_proj")),
    "GraniteMoe": ("block_sparse_moe.experts", ("w1", "w3", "w2")),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_expert_has_linears_with_the_names_that_engines_know(family: str, tiny_model: MakeModel) -> None:
    folder, spelled = FAMILIES[family]
    decoder = Decoder(tiny_model(family))
    last = decoder.layers[1]
    experts = next(name for name, module in last.named_modules() if isinstance(module, Experts))
    for number in range(4):
        for projection, name in zip(("gate_proj", "up_proj", "down_proj"), spelled, strict=True):
            path = f"{experts}.{number}.{projection}"
            assert isinstance(linears(last)[path], nn.Linear)
            stored = decoder.names.stored_module(f"model.layers.1.{path}")
            assert stored == f"model.layers.1.{folder}.{number}.{name}"
            assert decoder.names.sources[f"model.layers.1.{path}.weight"].stored in decoder.reader


@pytest.mark.parametrize("family", FAMILIES)
def test_routers_are_in_no_group(family: str, tiny_model: MakeModel) -> None:
    decoder = Decoder(tiny_model(family))
    with decoder.layer(1) as layer:
        paths = {path for group in fused_groups(decoder, 1, layer, probe_state(decoder)) for path in group}
    assert paths == set(linears(layer))
    assert not any("router" in path or path.endswith("mlp.gate") for path in paths)


def test_a_shared_expert_as_wide_as_there_are_experts_is_no_router(stdlib_model: Path, tmp_path: Path) -> None:
    sizes = {"num_experts": 8, "shared_expert_intermediate_size": 8}
    decoder = Decoder(make_model("Qwen3Next", {**EXTRAS["Qwen3Next"], **sizes}, tmp_path, stdlib_model))
    paths = {path for path in linears(decoder.layers[0]) if path.startswith("mlp.shared_expert")}
    assert paths == {f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")}


def test_slices_of_a_transposed_interleaved_tensor_with_biases(tiny_model: MakeModel) -> None:
    decoder = Decoder(tiny_model("GptOss"))
    prefix = "model.layers.0.mlp.experts"
    fused_EHI, bias_EI = (decoder.reader.tensor(f"{prefix}.gate_up_proj{end}").float() for end in ("", "_bias"))
    down_EIH = decoder.reader.tensor(f"{prefix}.down_proj").float()
    with decoder.layer(0) as layer:
        expert = layer.mlp.experts[2]
        assert torch.equal(expert.gate_proj.weight, fused_EHI[2, :, 0::2].T)
        assert torch.equal(expert.up_proj.weight, fused_EHI[2, :, 1::2].T)
        assert torch.equal(expert.up_proj.bias, bias_EI[2, 1::2])
        assert torch.equal(expert.down_proj.weight, down_EIH[2].T)


def test_stored_tensors_of_a_fused_layer_come_whole_or_expert_by_expert(tiny_model: MakeModel) -> None:
    decoder = Decoder(tiny_model("GptOss"))
    prefix = "model.layers.0.mlp.experts"
    with decoder.layer(0, keep_stored=True):
        whole = decoder.stored_tensors(0)
        quantized = [f"{prefix}.{number}.{name}" for number in range(4) for name in ("gate_proj", "up_proj")]
        parts = decoder.stored_tensors(0, quantized)
    assert torch.equal(whole[f"{prefix}.gate_up_proj"], decoder.reader.tensor(f"{prefix}.gate_up_proj"))
    assert not any(f"{name}.weight" in parts for name in quantized)
    assert torch.equal(parts[f"{prefix}.3.down_proj.weight"], whole[f"{prefix}.down_proj"][3].T)
    assert torch.equal(parts[f"{prefix}.3.gate_proj.bias"], whole[f"{prefix}.gate_up_proj_bias"][3, 0::2])
    assert f"{prefix}.gate_up_proj" not in parts
    assert torch.equal(parts["model.layers.0.self_attn.sinks"], whole["model.layers.0.self_attn.sinks"])
