"""Activations at run time, against compressed-tensors' own fake quantization in float32, and brute force."""

import pytest
import torch
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from fixtures.library_args import library_args

from optcore.algorithms.activations import outlier_columns, static_scale
from optcore.kernels.activations import fake_quantize_activation
from optcore.schemes import PRESETS, QuantArgs

KINDS = ["fp8", "fp8_dynamic", "fp8_block", "int8", "int8_static", "nvfp4", "mxfp4", "mxfp8"]
SEARCHED = ["nvfp4", "mxfp4", "mxfp8"]


@pytest.fixture
def x_BTK() -> torch.Tensor:
    """Channels of different magnitudes, one of them an outlier; one token of zeros."""
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(3, 20, 256, generator=generator) * torch.rand(256, generator=generator).exp()
    x[..., 7] *= 12
    x[1, 3] = 0
    return x


@pytest.mark.parametrize("name", KINDS)
def test_engines_compute_the_same(name: str, x_BTK: torch.Tensor) -> None:
    args, scale = _of(name, x_BTK)
    library = library_args(args)
    if library.dynamic:
        found, zero = compute_dynamic_scales_and_zp(x_BTK, library, torch.nn.Module(), global_scale=scale)
    else:
        found, zero = scale, torch.zeros(1)
    expected = fake_quantize(
        x_BTK, found, zero, library, global_scale=scale if args.strategy == "tensor_group" else None
    )
    torch.testing.assert_close(fake_quantize_activation(x_BTK, args, scale), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SEARCHED)
def test_the_search_is_the_best_of_its_candidates(name: str, x_BTK: torch.Tensor) -> None:
    """Never worse in any block; better in sum where blocks are wide in codes."""
    args, scale = _of(name, x_BTK)
    plain, searched = (
        (fake_quantize_activation(x_BTK, args, scale, search) - x_BTK)
        .square()
        .unflatten(-1, (-1, args.group_size or 0))
        .sum(-1)
        for search in (False, True)
    )
    assert (searched <= plain * (1 + 1e-5)).all()
    print(f"{name}: squared error {searched.sum() / plain.sum():.3f} of the maximum's")
    assert searched.sum() < plain.sum() * {"nvfp4": 0.9, "mxfp4": 0.999, "mxfp8": 1.0001}[name]


@pytest.mark.parametrize("name", [*KINDS, "llm_int8"])
@pytest.mark.parametrize("columns", [256, 200, 130])
def test_groups_need_not_divide(name: str, columns: int, x_BTK: torch.Tensor) -> None:
    """The last group is rounded as if zeros followed."""
    args, scale = _of(name, x_BTK)
    x = x_BTK[..., :columns]
    padded = torch.nn.functional.pad(x, (0, 256 - columns))
    expected = fake_quantize_activation(padded, args, scale)[..., :columns]
    assert torch.equal(fake_quantize_activation(x, args, scale), expected)


@pytest.mark.parametrize("name", [*KINDS, "llm_int8"])
def test_zeros_and_types_survive(name: str, x_BTK: torch.Tensor) -> None:
    args, scale = _of(name, x_BTK)
    rounded = fake_quantize_activation(x_BTK.bfloat16(), args, scale)
    assert rounded.dtype == torch.bfloat16
    assert (rounded[1, 3] == 0).all()
    assert rounded.isfinite().all()
    relative = (rounded.float() - x_BTK).norm() / x_BTK.norm()
    assert relative < 0.2


def test_outlier_columns_stay_as_they_are(x_BTK: torch.Tensor) -> None:
    """A column with one magnitude above 6 is kept in every token, and does not stretch the others' scale."""
    args = PRESETS["llm_int8"].activations
    assert args is not None
    outliers_K = outlier_columns(x_BTK, args)
    assert outliers_K.tolist() == (x_BTK.abs() > 6).any(0).any(0).tolist()
    assert 0 < outliers_K.sum() < 256
    rounded = fake_quantize_activation(x_BTK, args, None)
    assert torch.equal(rounded[..., outliers_K], x_BTK[..., outliers_K])
    rest = x_BTK[..., ~outliers_K]
    step = rest.abs().amax(-1, keepdim=True) / 127.5
    assert ((rounded[..., ~outliers_K] - rest).abs() <= step * 0.5001).all()


@pytest.mark.parametrize("name", ["fp8", "int8_static", "nvfp4"])
@pytest.mark.parametrize("amax", [0.0, 1e-44, 1e-30, 1e30])
def test_measured_scales_are_usable(name: str, amax: float) -> None:
    args, _ = _of(name, torch.ones(1, 16))
    scale = static_scale(amax, args, torch.bfloat16)
    assert scale.shape == (1,)
    assert scale.isfinite().all()
    assert (scale > 0).all()
    assert fake_quantize_activation(torch.full((2, 16), amax), args, scale).isfinite().all()


def _of(name: str, x: torch.Tensor) -> tuple[QuantArgs, torch.Tensor | None]:
    """The format's activations, and their scale when it is a measured one."""
    args = PRESETS[name].activations
    assert args is not None
    return args, static_scale(x.abs().amax().item(), args, torch.float32) if PRESETS[name].needs_calibration else None
