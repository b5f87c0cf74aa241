"""KV caches against float64 arithmetic written out here, in attention, and as models call them."""

import json
from pathlib import Path

import pytest
import torch
from fixtures.exporting import Quantize, export
from fixtures.tiny_models import MakeModel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from optcore.algorithms.kv_cache import rotated
from optcore.algorithms.rounding import E2M1_VALUES
from optcore.export import CompressedTensors, Export, Modelopt
from optcore.schemes import KV_CACHE_PRESETS
from optcore.streaming.cache import ObservingCache, RoundingCache
from optcore.streaming.decoder import Decoder

ALL = pytest.mark.parametrize("name", KV_CACHE_PRESETS)
SIGNED = torch.tensor([-v for v in reversed(E2M1_VALUES[1:])] + list(E2M1_VALUES), dtype=torch.float64)


@pytest.fixture
def states_BHTD() -> tuple[torch.Tensor, torch.Tensor]:
    """Keys with an outlier channel off zero, as rotary models have them; values without."""
    generator = torch.Generator().manual_seed(9)
    keys, values = (torch.randn(2, 4, 24, 96, generator=generator) for _ in range(2))
    keys[:, 1, :, 5] += 12
    keys[:, 2] *= 4
    return keys, values


def _cache(name: str, states: tuple[torch.Tensor, torch.Tensor], *, rotate: bool = False) -> RoundingCache:
    """Measured in two batches, as a calibration is."""
    observing = ObservingCache(rotate=rotate)
    for half in range(2):
        given = states[0][half : half + 1], states[1][half : half + 1]
        assert observing.update(*given, 0) == given
    args = KV_CACHE_PRESETS[name]
    return RoundingCache(args, observing.tensors(args, torch.float32), rotate=rotate)


def _fp8(x: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    """Multiples of 2^-3 of each binade, 2^-9 at least, up to 448."""
    scaled = x / (amax / 448)
    spacing = 2.0 ** (scaled.abs().clamp(2.0**-6, 448).log2().floor() - 3)
    return ((scaled / spacing).round() * spacing).clamp(-448, 448) * (amax / 448)


def _nvfp4(x: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    blocks = x.unflatten(-1, (-1, 16))
    divisor = 2688 / amax
    scales = _fp8(blocks.abs().amax(-1, keepdim=True) / 6 * divisor, torch.tensor(448.0, dtype=torch.float64)) / divisor
    nearest = ((blocks / scales)[..., None] - SIGNED).abs().argmin(-1)
    return (SIGNED[nearest] * scales).flatten(-2)


def _affine(x: torch.Tensor) -> torch.Tensor:
    bias = x.mean((0, 2), keepdim=True).float().double()  # as it is stored
    return _nvfp4(x - bias, (x - bias).abs().amax()) + bias


def _int8(x: torch.Tensor) -> torch.Tensor:
    step = x.abs().amax(-1, keepdim=True) / 127.5
    return (x / step).round().clamp(-128, 127) * step


def _int4(x: torch.Tensor) -> torch.Tensor:
    groups = x.unflatten(-1, (-1, 32))
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    step = (high - low) / 15
    zero = (-8 - low / step).round().clamp(-8, 7)
    return (((groups / step + zero).round().clamp(-8, 7) - zero) * step).flatten(-2)


REFERENCES = {
    "fp8": lambda x: _fp8(x, x.abs().amax()),
    "fp8_head": lambda x: _fp8(x, x.abs().amax((0, 2, 3), keepdim=True)),
    "nvfp4": lambda x: _nvfp4(x, x.abs().amax()),
    "nvfp4_affine": _affine,
    "int8": _int8,
    "int4": _int4,
}


@ALL
def test_states_are_rounded_as_in_float64(name: str, states_BHTD: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Equal but for values within float32's reach of a tie."""
    for ours, given in zip(_cache(name, states_BHTD).update(*states_BHTD, 0), states_BHTD, strict=True):
        expected = REFERENCES[name](given.double())
        differing = (ours.double() - expected).abs() > 1e-5 * expected.abs().amax()
        print(f"{name}: {differing.sum()} of {differing.numel()} values differ")
        assert differing.float().mean() < (2e-3 if name == "int8" else 5e-4)  # every token has a tie, at 127.5 steps


@ALL
@pytest.mark.parametrize("rotate", [False, True])
def test_types_and_shapes_survive(name: str, rotate: bool, states_BHTD: tuple[torch.Tensor, torch.Tensor]) -> None:
    keys, values = (states.bfloat16() for states in states_BHTD)
    rounded = _cache(name, (keys, values), rotate=rotate).update(keys, values, 0)
    for ours, given in zip(rounded, (keys, values), strict=True):
        assert ours.dtype == given.dtype
        assert ours.shape == given.shape
        assert (ours - given).float().norm() < 0.15 * given.float().norm()


@pytest.mark.parametrize("size", [8, 96, 128, 80])
def test_rotated_queries_and_keys_give_the_same_products(size: int) -> None:
    queries, keys = torch.randn(2, 3, 5, size, generator=torch.Generator().manual_seed(10))
    torch.testing.assert_close(rotated(queries) @ rotated(keys).mT, queries @ keys.mT, rtol=0, atol=1e-4)
    torch.testing.assert_close(rotated(rotated(keys)), keys, rtol=0, atol=1e-6)


def test_rotating_back_equals_rotating_queries(states_BHTD: tuple[torch.Tensor, torch.Tensor]) -> None:
    """What is simulated, and what an engine does: attention with queries and stored keys both rotated."""
    keys, values = states_BHTD
    queries = torch.randn(keys.shape, generator=torch.Generator().manual_seed(11))
    cache = _cache("int4", states_BHTD, rotate=True)
    simulated = scaled_dot_product_attention(queries, *cache.update(keys, values, 0))
    stored_keys, stored_values = RoundingCache(cache.args, cache.tensors).update(rotated(keys), values, 0)
    served = scaled_dot_product_attention(rotated(queries), stored_keys, stored_values)
    torch.testing.assert_close(simulated, served, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["int4", "int8"])
def test_rotation_helps_where_a_channel_sticks_out(name: str, states_BHTD: tuple[torch.Tensor, torch.Tensor]) -> None:
    errors = [
        (_cache(name, states_BHTD, rotate=rotate).update(*states_BHTD, 0)[0] - states_BHTD[0])[:, 1].norm().item()
        for rotate in (False, True)
    ]
    print(f"{name}: error of keys {errors[0]:.3f}, rotated {errors[1]:.3f}")
    assert errors[1] < errors[0] * 0.85


def test_the_bias_takes_what_every_token_shares(states_BHTD: tuple[torch.Tensor, torch.Tensor]) -> None:
    plain, affine = (
        (_cache(name, states_BHTD).update(*states_BHTD, 0)[0] - states_BHTD[0])[:, 1].norm().item()
        for name in ("nvfp4", "nvfp4_affine")
    )
    print(f"error of keys {plain:.3f}, affine {affine:.3f}")
    assert affine < plain * 0.8


@ALL
def test_what_is_stored(name: str, states_BHTD: tuple[torch.Tensor, torch.Tensor]) -> None:
    shapes = {suffix: tuple(tensor.shape) for suffix, tensor in _cache(name, states_BHTD).tensors.items()}
    expected = {
        "fp8": {"scale": (1,)},
        "fp8_head": {"scale": (4,)},
        "nvfp4": {"global_scale": (1,)},
        "nvfp4_affine": {"bias": (1, 4, 1, 96), "global_scale": (1,)},
    }.get(name, {})
    assert shapes == {f"{kind}_{suffix}": shape for kind in "kv" for suffix, shape in expected.items()}


@pytest.mark.parametrize("family", ["Llama", "Gemma3Text", "GptOss", "Qwen3Next", "Lfm2", "NemotronH"])
def test_layers_of_all_kinds_accept_it(family: str, tiny_model: MakeModel) -> None:
    """Also those with convolutions and recurrent states, which ask a cache for more; observing changes nothing."""
    decoder = Decoder(tiny_model(family))
    state = decoder.embed(torch.arange(24).view(2, 12))
    observed = 0
    for index in range(len(decoder)):
        arguments = dict(state.arguments[index])
        cache = ObservingCache()
        name = next(name for name in ("past_key_values", "cache_params") if name in arguments)
        with decoder.layer(index) as layer, torch.no_grad():
            plain, seen = layer(state.hidden_BTH, **arguments), layer(state.hidden_BTH, **{**arguments, name: cache})
        torch.testing.assert_close(_first(seen), _first(plain), rtol=1e-5, atol=1e-5)
        observed += bool(cache.tensors(KV_CACHE_PRESETS["fp8"], torch.float32))
    assert observed > 0


def _first(out: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("target", [CompressedTensors(), Modelopt()], ids=lambda target: target.format)
def test_a_cache_alone_can_be_exported(target: Export, quantized: Quantize, stdlib_model: Path, tmp_path: Path) -> None:
    """Every weight as it was, and two scales a layer."""
    files = export(target, quantized("fp8", kv_cache="fp8", ignore=["re:.*"]), tmp_path, stdlib_model)
    described = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert described["kv_cache_scheme"]["num_bits"] == 8
    assert not described.get("config_groups")
    assert sum(name.endswith(("k_scale", "v_scale")) for name in files.names) == 2 * 6
    if isinstance(target, CompressedTensors):
        _, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    else:
        nested = json.loads((tmp_path / "hf_quant_config.json").read_text())["quantization"]
        assert (nested["quant_algo"], nested["kv_cache_quant_algo"]) == (None, "FP8")
