"""The clustered bootstrap against distributions worked out by hand."""

import math

import numpy as np
import pytest

from src.metrics.intervals import clustered_interval


def test_two_clusters_by_hand():
    """Draws of {a: 0, 0; b: 1}: aa has mean 0, ab and ba 1/3, bb 1, so 1/4, 1/2 and 1/4 of the draws."""
    values, clusters = [0.0, 1.0, 0.0], ["a", "b", "a"]
    assert clustered_interval(values, clusters, level=0.8) == (0, 1)
    assert clustered_interval(values, clusters, level=0.4) == pytest.approx((1 / 3, 1 / 3))


def test_copies_of_a_value_in_its_cluster_tell_nothing_new():
    values = np.random.default_rng(0).normal(size=30)
    alone = clustered_interval(values.tolist(), range(30))
    copied = clustered_interval(np.repeat(values, 5).tolist(), np.repeat(np.arange(30), 5).tolist())
    assert copied == pytest.approx(alone)
    naive = clustered_interval(np.repeat(values, 5).tolist(), range(150))
    assert naive[1] - naive[0] < 0.6 * (copied[1] - copied[0])  # 1 / sqrt(5) = 0.45
    half = 1.96 * values.std() / 30**0.5
    assert alone == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)


def test_named_results():
    assert clustered_interval([2.0, 2.0], ["a", "b"]) == (2, 2)
    assert all(math.isnan(limit) for limit in clustered_interval([1.0, 2.0], ["a", "a"]))
    for values, clusters in (([], []), ([1.0, math.nan], ["a", "b"]), ([1.0], ["a", "b"])):
        with pytest.raises(ValueError, match="finite values and one cluster per value"):
            clustered_interval(values, clusters)
