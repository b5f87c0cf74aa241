"""The map that fuses features: it trains on them at unit size, and is written for them as they are."""

import torch

from optcore.drafts.fusion import Fusion

torch.set_num_threads(1)
SIZES_F = torch.tensor([0.5, 3.0, 40.0, 2000.0, 0.0, 1.0])
FEATURES_NF = torch.randn(256, 6, generator=torch.Generator().manual_seed(1)) * SIZES_F


def fusion() -> Fusion:
    torch.manual_seed(0)
    return Fusion(6, 4)


def rms(features_NF: torch.Tensor) -> torch.Tensor:
    return features_NF.square().mean(0).sqrt()


def written(fused: Fusion) -> torch.Tensor:
    """What an engine computes, which knows of no scale."""
    return FEATURES_NF @ fused.plain_weight.T


def test_a_new_map_begins_with_every_feature_alike() -> None:
    fused = fusion()
    weight = fused.weight.clone()
    fused.settle(rms(FEATURES_NF), keeps=False)
    assert torch.equal(fused.weight, weight)
    rms_F, seen_F = rms(FEATURES_NF), rms(FEATURES_NF / fused.scale_F)
    assert torch.allclose(seen_F[rms_F > 1], torch.ones(4)[: int((rms_F > 1).sum())], atol=1e-5)
    assert torch.isfinite(fused(FEATURES_NF)).all()
    assert (seen_F <= 1 + 1e-5).all(), "what is hardly there is not blown up"


def test_what_is_written_reads_features_as_they_are() -> None:
    fused = fusion()
    fused.settle(rms(FEATURES_NF), keeps=False)
    assert torch.allclose(written(fused), fused(FEATURES_NF), rtol=1e-4, atol=1e-5)
    again = Fusion(6, 4)
    again.load_state_dict({"weight": fused.plain_weight})
    assert torch.allclose(again(FEATURES_NF), fused(FEATURES_NF), rtol=1e-4, atol=1e-5)


def test_a_map_that_has_learned_stays_what_it_is() -> None:
    fused = fusion()
    before, weight = fused(FEATURES_NF), fused.weight.clone()
    for features_NF in (FEATURES_NF, 7 * FEATURES_NF):
        fused.settle(rms(features_NF), keeps=True)
        assert torch.allclose(fused(FEATURES_NF), before, rtol=1e-4, atol=1e-3)
        assert torch.allclose(fused.plain_weight, weight, rtol=1e-5)
    assert not torch.allclose(fused.weight, weight)


def test_features_that_are_all_zero_leave_it_usable() -> None:
    fused = fusion()
    fused.settle(torch.zeros(6), keeps=False)
    assert torch.isfinite(fused(FEATURES_NF)).all()
