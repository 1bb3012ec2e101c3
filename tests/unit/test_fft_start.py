import numpy as np
import pytest
import torch

from contourcast.registration.fft_start import masked_ncc


def brute_force(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Pearson's correlation of what both observe, shift by shift."""
    shape = tuple(m - f + 1 for m, f in zip(moving.shape, fixed.shape, strict=True))
    scores = np.full(shape, -1.0)
    for z, y, x in np.ndindex(shape):
        part = moving[z : z + fixed.shape[0], y : y + fixed.shape[1], x : x + fixed.shape[2]]
        both = np.isfinite(fixed) & np.isfinite(part)
        if both.sum() >= 0.3 * np.isfinite(fixed).sum():
            scores[z, y, x] = np.corrcoef(fixed[both], part[both])[0, 1]
    return scores


def test_every_shift_has_the_correlation_of_what_both_scans_observe() -> None:
    generator = np.random.default_rng(0)
    fixed, moving = generator.normal(size=(4, 5, 6)), generator.normal(size=(8, 9, 9)) + 3
    fixed[:, :2, 3:] = np.nan
    moving[6:, :, :] = np.nan
    found = masked_ncc(torch.tensor(fixed), torch.tensor(moving), least_overlap=0.3)
    np.testing.assert_allclose(found.numpy(), brute_force(fixed, moving), atol=1e-9)


def test_a_shift_with_too_little_overlap_is_worth_nothing() -> None:
    generator = np.random.default_rng(1)
    moving = generator.normal(size=(8, 8, 8))
    fixed = moving[4:8, 2:6, 2:6].copy()
    moving[5:] = np.nan  # the true place keeps a quarter of the fixed samples
    found = masked_ncc(torch.tensor(fixed), torch.tensor(moving), least_overlap=0.3)
    assert float(found[4, 2, 2]) == -1.0
    assert float(found.max()) < 0.9


@pytest.mark.parametrize("gain", [1.0, -0.0])
def test_a_constant_scan_correlates_with_nothing(gain: float) -> None:
    moving = torch.randn((6, 6, 6), generator=torch.Generator().manual_seed(0))
    found = masked_ncc(torch.full((3, 3, 3), gain), moving, least_overlap=0.3)
    assert float(found.max()) == -1.0
