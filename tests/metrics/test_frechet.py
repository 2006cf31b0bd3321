"""The Frechet distance: hand cases, SciPy's matrix root, batches, few images."""

import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from src.metrics.frechet import FrechetDistance, frechet_distance, statistics


def by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    """Equation 6 with scipy.linalg.sqrtm, of features (images, width)."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(np.asarray(sqrtm(first @ second)))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root))


def measured(a: torch.Tensor, b: torch.Tensor, size: int) -> float:
    metric = FrechetDistance(a.shape[1])
    for features, real in ((a, True), (b, False)):
        for part in features.split(size):
            metric.update(part, real)
    return float(metric.compute())


def test_by_hand():
    # one feature: (3 - 1)^2 + (2 - 1)^2 for deviations 2 and 1
    one = torch.ones(1, 1)
    assert frechet_distance(torch.tensor([3.0]), 4 * one, torch.tensor([1.0]), one) == pytest.approx(5)
    # diagonal: 0 + (3 - 1)^2 + (1 - 2)^2
    first, second = torch.diag(torch.tensor([9.0, 1.0])), torch.diag(torch.tensor([1.0, 4.0]))
    assert frechet_distance(torch.zeros(2), first, torch.zeros(2), second) == pytest.approx(5)
    # two lines at an angle of 60 degrees, both singular: 4 + 1 - 2 * 2 * 1 * cos 60
    line = torch.tensor([0.5, 0.75**0.5], dtype=torch.float64)
    flat = torch.diag(torch.tensor([4.0, 0.0]))
    assert frechet_distance(torch.zeros(2), flat, torch.zeros(2), line.outer(line)) == pytest.approx(3)
    assert frechet_distance(torch.zeros(2), first, torch.zeros(2), first) == pytest.approx(0, abs=1e-12)


def test_statistics_by_hand():
    mean, covariance = statistics(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    assert mean.tolist() == [1, 2]
    assert covariance.tolist() == [[2, 4], [4, 8]]
    with pytest.raises(ValueError, match="at least 2 images"):
        statistics(torch.zeros(1, 3))


@pytest.mark.parametrize("size", [7, 64, 500])
def test_agrees_with_scipy_for_any_batches(size):
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 6))
    a, b = rng.normal(size=(300, 6)) @ mix + 1000, rng.normal(size=(200, 6)) * 0.5 + 1000.3
    found = measured(torch.from_numpy(a), torch.from_numpy(b), size)
    assert found == pytest.approx(by_scipy(a, b), rel=1e-7)
    by_statistics = frechet_distance(*statistics(torch.from_numpy(a)), *statistics(torch.from_numpy(b)))
    assert found == pytest.approx(by_statistics, rel=1e-7)


def test_float32_features_are_summed_in_float64():
    torch.manual_seed(0)
    a, b = 100 + torch.randn(400, 3), 100 + 1.5 * torch.randn(400, 3)
    metric = FrechetDistance(3).float()
    for features, real in ((a, True), (b, False)):
        metric.update(features, real)
    assert metric.compute().dtype == torch.float64
    assert float(metric.compute()) == pytest.approx(by_scipy(a.double().numpy(), b.double().numpy()), rel=1e-6)


def test_few_images_are_told_and_still_right():
    torch.manual_seed(0)
    a, b = torch.randn(5, 8, dtype=torch.float64), torch.randn(20, 8, dtype=torch.float64)
    with pytest.warns(UserWarning, match="5 images for 8 features: the covariance is singular"):
        found = measured(a, b, 5)
    assert found == pytest.approx(by_scipy(a.numpy(), b.numpy()), rel=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measured(b, b, 20) == pytest.approx(0, abs=1e-9)


def test_what_cannot_be_measured_is_refused():
    metric = FrechetDistance(2)
    metric.update(torch.zeros(1, 2), real=True)
    with pytest.raises(ValueError, match="1 real images: at least 2"):
        metric.compute()
    with pytest.raises(ValueError, match=r"features are \(1, 3\), not \(images, 2\)"):
        metric.update(torch.zeros(1, 3), real=True)
    with pytest.raises(ValueError, match="features are NaN or infinite"):
        metric.update(torch.tensor([[torch.nan, 0]]), real=False)
    with pytest.raises(ValueError, match="statistics of features are NaN"):
        frechet_distance(torch.zeros(1), torch.full((1, 1), torch.inf), torch.zeros(1), torch.ones(1, 1))
    with pytest.raises(ValueError, match=r"statistics are \(2,\), not \(1,\)"):
        frechet_distance(torch.zeros(1), torch.ones(1, 1), torch.zeros(2), torch.ones(1, 1))
