"""Confidence intervals of the mean of samples that are not independent."""

from collections.abc import Hashable, Sequence

import numpy as np


def clustered_interval(
    values: Sequence[float], clusters: Sequence[Hashable], level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of `values`, resampled by cluster.

    Each draw resamples all clusters with replacement and takes the mean of their values (Davison and Hinkley 1997,
    section 3.8). `clusters`: the cluster of each value; (nan, nan) for a single cluster. Raises ValueError without
    values, or if one is not finite.
    """
    found = np.asarray(values, np.float64)
    if not len(found) or not np.isfinite(found).all() or len(found) != len(clusters):
        raise ValueError(f"an interval needs finite values and one cluster per value; got {len(found)} values.")
    rows = {cluster: row for row, cluster in enumerate(dict.fromkeys(clusters))}
    if len(rows) == 1:
        return float("nan"), float("nan")
    of = [rows[cluster] for cluster in clusters]
    sums, counts = np.bincount(of, found), np.bincount(of)
    drawn = np.random.default_rng(seed).integers(len(rows), size=(draws, len(rows)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
