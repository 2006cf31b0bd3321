"""The plain loop that is timed computes what ours does; pysaliency's: tests/parity/test_saliency.py."""

import pytest

from benchmarks.saliency import heat_maps, loop, milliseconds
from src.metrics.saliency import auc_judd, fixations


def test_the_loop_computes_the_same():
    predicted, truth = heat_maps(3, 64)
    fixated = fixations(truth)
    assert 0 < predicted.min() < predicted.max() < 1
    expected = [loop(p.numpy(), at.numpy()) for p, at in zip(predicted, fixated, strict=True)]
    assert auc_judd(predicted, fixated).tolist() == pytest.approx(expected, abs=1e-6)
    coarse = (predicted * 9).round()  # ties
    expected = [loop(p.numpy(), at.numpy()) for p, at in zip(coarse, fixated, strict=True)]
    assert auc_judd(coarse, fixated).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_milliseconds_are_the_median_per_map(monkeypatch: pytest.MonkeyPatch):
    """Ways take turns: one spends 1, 5 and 2 s on 4 maps, the other 3, 3 and 9 s on one."""
    clock = iter([0, 1, 1, 4, 4, 9, 9, 12, 12, 14, 14, 23])
    monkeypatch.setattr("benchmarks.saliency.time.process_time", lambda: next(clock))
    found = milliseconds({"ours": (lambda: None, 4), "loop": (lambda: None, 1)}, 3)
    assert found == {"ours": 500, "loop": 3000}
