"""Correlations of scores against SciPy and numbers worked by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from src.metrics.correlation import Correlation, plcc, ranks, srcc

SCORES = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=2, max_size=30)


def test_by_hand():
    x, y = torch.tensor([1.0, 2.0, 3.0, 3.0]), torch.tensor([0.0, 0.5, 0.25, 1.0])
    assert ranks(x).tolist() == [1, 2, 3.5, 3.5]
    # deviations of x: -1.25, -0.25, 0.75, 0.75; of y: -0.4375, 0.0625, -0.1875, 0.5625
    assert float(plcc(x, y)) == pytest.approx(0.8125 / math.sqrt(2.75 * 0.546875))
    # of the ranks: -1.5, -0.5, 1, 1 and -1.5, 0.5, -0.5, 1.5
    assert float(srcc(x, y)) == pytest.approx(3 / math.sqrt(4.5 * 5))
    assert [float(measure(x, -x)) for measure in (plcc, srcc)] == [pytest.approx(-1), pytest.approx(-1)]


@given(SCORES)
def test_agrees_with_scipy_with_ties(scores: list[tuple[int, int]]):
    x, y = torch.tensor(scores, dtype=torch.float32).div(12).unbind(dim=1)
    if x.min() == x.max() or y.min() == y.max():
        assert plcc(x, y) == srcc(x, y) == 0
        return
    assert float(plcc(x, y)) == pytest.approx(stats.pearsonr(x.double(), y.double())[0], abs=1e-9)
    assert float(srcc(x, y)) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-9)
    assert float(srcc(x.exp(), y**3)) == pytest.approx(float(srcc(x, y)), abs=1e-12)


def test_named_results():
    flat, x = torch.full((5,), 0.1), torch.arange(5.0)
    for measure in (plcc, srcc):
        assert [float(measure(*pair)) for pair in ((flat, x), (x, flat), (flat, flat))] == [0, 0, 0]
        assert float(measure(x[:1], x[:1])) == float(measure(x[:0], x[:0])) == 0
        with pytest.raises(ValueError, match="predicted scores: 1 of 5 are not finite"):
            measure(x / x, x)
        with pytest.raises(ValueError, match="equal length"):
            measure(x, x[1:])


def test_one_outlier_among_equal_scores_has_a_correlation():
    x = torch.zeros(5000)
    x[7] = 1
    y = torch.rand(5000, generator=torch.Generator().manual_seed(0))
    assert float(plcc(x, y)) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-6)


def test_batches_add_up():
    generator = torch.Generator().manual_seed(0)
    predicted, true = (torch.rand(50, 2, generator=generator) for _ in range(2))
    metric = Correlation(("plausibility", "alignment"))
    for rows in torch.arange(50).split(21):
        metric.update(predicted[rows], true[rows])
    found = {name: float(value) for name, value in metric.compute().items()}
    expected = {
        f"{name}_{kind}": float(measure(predicted[:, column], true[:, column]))
        for kind, measure in (("plcc", plcc), ("srcc", srcc))
        for column, name in enumerate(("plausibility", "alignment"))
    }
    for kind in ("plcc", "srcc"):
        expected[f"mean_{kind}"] = (expected[f"plausibility_{kind}"] + expected[f"alignment_{kind}"]) / 2
    assert found == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="true scores, alignment: 1 of 2 are not finite"):
        metric.update(predicted[:2], torch.tensor([[0, 0], [0, math.inf]]))
    with pytest.raises(ValueError, match=r"predicted scores \(2, 1\): \(batch, 2\) is needed"):
        metric.update(predicted[:2, :1], true[:2])
