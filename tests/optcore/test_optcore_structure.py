"""Folds: what may be rescaled in a layer, family by family, and that it changes nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from fixtures.tiny_models import EXTRAS, MakeModel
from torch import nn

from optcore.streaming.decoder import Decoder
from optcore.streaming.groups import fused_groups, linears, probe_state
from optcore.streaming.structure import Fold, folds

ATTENTION = {
    "DeepseekV3": {
        "self_attn.q_a_layernorm": ["self_attn.q_b_proj"],
        "self_attn.kv_a_layernorm": ["self_attn.kv_b_proj"],
        "input_layernorm": ["self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"],
        "self_attn.kv_b_proj": ["self_attn.o_proj"],
    },
    "Phi3": {"input_layernorm": ["self_attn.qkv_proj"], "self_attn.qkv_proj": ["self_attn.o_proj"]},
    "Olmo2": {"self_attn.v_proj": ["self_attn.o_proj"]},
}
USUAL = {
    "input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "self_attn.v_proj": ["self_attn.o_proj"],
}
KNOWN = [
    "Llama",
    "Qwen2",
    "Qwen3",
    "Mistral",
    "Phi3",
    "Olmo2",
    "Gemma2",
    "Gemma3Text",
    "Mixtral",
    "DeepseekV3",
    "Qwen3Moe",
]


@pytest.mark.parametrize("family", KNOWN)
def test_attention_folds_are_found(family: str, tiny_model: MakeModel) -> None:
    found = {fold.producer: list(fold.consumers) for _, _, _, fold in _folds(tiny_model(family), layers=(0,))}
    inside = {name: readers for name, readers in found.items() if any("self_attn" in path for path in readers)}
    assert inside == ATTENTION.get(family, USUAL)


@pytest.mark.parametrize("family", KNOWN)
def test_every_ungated_linear_but_the_residuals_readers_is_a_consumer_once(family: str, tiny_model: MakeModel) -> None:
    decoder = Decoder(tiny_model(family))
    with decoder.layer(1) as layer:
        found = folds(decoder, 1, layer, probe_state(decoder))
        every = set(linears(layer))
    consumers = [path for fold in found for path in fold.consumers]
    assert len(consumers) == len(set(consumers))
    post_norm = {f"self_attn.{part}_proj" for part in "qkv"} | {"mlp.gate_proj", "mlp.up_proj"}
    assert every - set(consumers) == (post_norm if family == "Olmo2" else set())


@pytest.mark.parametrize("family", EXTRAS)
def test_scales_leave_the_layer_as_it_was(family: str, tiny_model: MakeModel) -> None:
    for index, decoder, layer, fold in _folds(tiny_model(family)):
        probe = probe_state(decoder)
        before = decoder.forward(index, layer, probe).hidden_BTH
        inputs = _inputs(decoder, index, layer, fold.consumers)
        stored = {name: parameter.data.clone() for name, parameter in layer.named_parameters()}
        s_K = fold.tie(_scales(len(fold.rows_K)))
        torch.testing.assert_close(fold.apply(layer, s_K), s_K)
        torch.testing.assert_close(decoder.forward(index, layer, probe).hidden_BTH, before, rtol=1e-4, atol=1e-5)
        for path, x in _inputs(decoder, index, layer, fold.consumers).items():
            torch.testing.assert_close(x * s_K, inputs[path], rtol=1e-3, atol=1e-5)
        changed = {name for name, parameter in layer.named_parameters() if not parameter.data.equal(stored[name])}
        assert changed == {*fold.changed, *(f"{path}.weight" for path in fold.consumers)}


def test_a_fused_producer_changes_only_the_rows_of_its_values(tiny_model: MakeModel) -> None:
    rows = {fold.producer: fold.rows_K for _, _, _, fold in _folds(tiny_model("Phi3"), layers=(0,))}
    repeated_values = torch.arange(128 + 64, 256).view(2, 1, 32).expand(2, 2, 32).reshape(-1)
    assert rows["self_attn.qkv_proj"].equal(repeated_values)
    assert rows["mlp.gate_up_proj"].equal(torch.arange(256, 512))


def test_repeated_heads_share_a_scale(tiny_model: MakeModel) -> None:
    fold = next(
        fold for _, _, _, fold in _folds(tiny_model("Llama"), layers=(0,)) if fold.producer == "self_attn.v_proj"
    )
    s_K = _scales(128)
    pairs = s_K.view(2, 2, 32)
    torch.testing.assert_close(fold.tie(s_K).view(2, 2, 32), pairs.amax(1, keepdim=True).expand(2, 2, 32))
    torch.testing.assert_close(fold.tie(fold.tie(s_K)), fold.tie(s_K))


def test_gemmas_norms_are_known_to_add_one(tiny_model: MakeModel) -> None:
    offsets = {fold.offset for _, _, _, fold in _folds(tiny_model("Gemma2"), layers=(0,)) if fold.kind == "norm"}
    assert offsets == {1.0}


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe", "DeepseekV3"])
def test_experts_and_their_router_follow_the_norm(family: str, tiny_model: MakeModel) -> None:
    found = [fold for _, _, _, fold in _folds(tiny_model(family), layers=(1,))]
    norm = next(fold for fold in found if fold.producer == "post_attention_layernorm")
    shared = family == "DeepseekV3"
    assert len(norm.groups) == 4 + shared
    assert norm.routers == ("mlp.gate",)
    assert set(norm.changed) == {"post_attention_layernorm.weight", "mlp.gate.weight"}
    assert sum(".experts." in fold.producer for fold in found) == 4


def test_a_reader_that_cannot_be_rescaled_forbids_the_fold(tiny_model: MakeModel) -> None:
    """A hidden second use of the norm's output, in no matrix, is noticed because the output moves."""
    decoder = Decoder(tiny_model("Llama"))
    with decoder.layer(0) as layer:
        mlp = layer.mlp
        handle = mlp.register_forward_hook(lambda _, args, out: out + 0.01 * args[0])
        found = folds(decoder, 0, layer, probe_state(decoder))
        handle.remove()
    assert {fold.producer for fold in found} == {"input_layernorm", "self_attn.v_proj", "mlp.up_proj"}


@pytest.mark.parametrize("bend", [torch.tanh, lambda x: x.clamp(-7, 7), lambda x: x + 0.01])
def test_what_is_not_proportional_forbids_the_fold(bend: Callable[..., torch.Tensor], tiny_model: MakeModel) -> None:
    decoder = Decoder(tiny_model("Llama"))
    with decoder.layer(0) as layer:
        handle = layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: bend(args[0]))
        found = folds(decoder, 0, layer, probe_state(decoder))
        handle.remove()
    assert "mlp.down_proj" not in {path for fold in found for path in fold.consumers}


def test_a_layer_norm_takes_its_bias_along() -> None:
    norm, linear = nn.LayerNorm(8), nn.Linear(8, 4)
    generator = torch.Generator().manual_seed(6)
    for parameter in (*norm.parameters(), *linear.parameters()):
        nn.init.normal_(parameter, generator=generator)
    layer = nn.Sequential(norm, linear)
    fold = Fold("norm", "0", (("1",),), (), torch.arange(8), parameters=("0.weight", "0.bias"))
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    before = layer(x)
    fold.apply(layer, _scales(8))
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_a_stored_norm_and_its_consumers_cancel_exactly(family: str, tiny_model: MakeModel) -> None:
    """bfloat16 rounds the norm; the scales that come back hold that rounding, so the layer does not feel it."""
    for index, decoder, layer, fold in _folds(tiny_model(family), layers=(0,)):
        if fold.kind == "norm":
            probe = probe_state(decoder)
            before = decoder.forward(index, layer, probe).hidden_BTH
            wanted = _scales(len(fold.rows_K))
            applied = fold.apply(layer, wanted, stored=torch.bfloat16)
            weight = layer.get_submodule(fold.producer).weight
            assert weight.equal(weight.bfloat16().float())
            assert not applied.equal(wanted)
            torch.testing.assert_close(applied, wanted, rtol=2e-2, atol=0)
            torch.testing.assert_close(decoder.forward(index, layer, probe).hidden_BTH, before, rtol=1e-4, atol=1e-5)


def _folds(folder: Path, layers: tuple[int, ...] = (0, 1)) -> Iterator[tuple[int, Decoder, nn.Module, Fold]]:
    """Each fold of each layer, with the layer in memory."""
    decoder = Decoder(folder)
    for index in layers:
        with decoder.layer(index) as layer:
            _train(layer)
            for fold in folds(decoder, index, layer, probe_state(decoder)):
                yield index, decoder, layer, fold


def _train(layer: nn.Module) -> None:
    """Give norms and biases, which are ones and zeros in a new model, values of their own."""
    for parameter in layer.parameters():
        if parameter.std() == 0:
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))


def _inputs(decoder: Decoder, index: int, layer: nn.Module, paths: tuple[str, ...]) -> dict[str, torch.Tensor]:
    given: dict[str, torch.Tensor] = {}
    handles = [
        layer.get_submodule(path).register_forward_pre_hook(
            lambda _, args, path=path: given.__setitem__(path, args[0].clone())
        )
        for path in paths
    ]
    fused_groups(decoder, index, layer, probe_state(decoder))
    for handle in handles:
        handle.remove()
    return given


def _scales(size: int) -> torch.Tensor:
    return 0.25 + 4 * torch.rand(size, generator=torch.Generator().manual_seed(3))
