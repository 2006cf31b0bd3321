"""Accuracies and rank correlations within groups, against loops, SciPy and numbers worked by hand."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from src.metrics.preference import (
    PreferenceMetrics,
    hits,
    n_way_accuracy,
    pairs,
    pairwise_accuracy,
    rank_correlation,
    rank_correlations,
    tie_aware_accuracy,
    tuned_threshold,
)

# A pair that is right, a group of three with two best values, one of them right, a group of four that is wrong, a tie.
VALUES = torch.tensor([0.9, 0.1, 0.5, 0.5, 0.2, 0.1, 0.2, 0.3, 0.4, 0.7, 0.6])
GROUPS = torch.tensor([7, 7, 3, 3, 3, 9, 9, 9, 9, 8, 8])
CHOSEN = torch.tensor([1.0, 0, 0, 1, 0, 1, 0, 0, 0, 0.5, 0.5])

ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=40)


def columns(rows: list[tuple[int, int, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    groups, values, preferred = torch.tensor(rows).unbind(dim=1)
    return values.float(), 1000 - 10 * groups, preferred.float()


def members(groups: torch.Tensor) -> list[np.ndarray]:
    return [np.flatnonzero(groups.numpy() == group) for group in np.unique(groups.numpy())]


def test_n_way_accuracy_by_hand():
    found = hits(VALUES, GROUPS, CHOSEN)
    assert found.hit[:2].tolist() == [0.5, 1]  # groups 3, 7, 8, 9
    assert math.isnan(found.hit[2])
    assert found.hit[3] == 0
    assert found.size.tolist() == [3, 2, 2, 4]
    assert found.random.tolist() == pytest.approx([1 / 3, 1 / 2, 1, 1 / 4])
    assert {name: float(value) for name, value in n_way_accuracy(VALUES, GROUPS, CHOSEN).items()} == pytest.approx({
        "accuracy": 1.5 / 3, "random_accuracy": (1 / 2 + 1 / 3 + 1 / 4) / 3, "accuracy_of_2": 1, "accuracy_of_3": 0.5,
        "accuracy_of_4": 0, "random_accuracy_of_2": 1 / 2, "random_accuracy_of_3": 1 / 3, "random_accuracy_of_4": 1 / 4,
        "num_groups": 3, "num_undecided": 1,
    })  # fmt: skip


def test_two_best_images_are_both_right():
    preferred = -torch.tensor([1.0, 1, 3, 4])
    for best, hit in ((0, 1), (1, 1), (2, 0), (3, 0)):
        assert float(hits(torch.eye(4)[best], torch.zeros(4, dtype=torch.long), preferred).hit) == hit
    assert float(hits(torch.zeros(4), torch.zeros(4, dtype=torch.long), preferred).hit) == 0.5


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_n_way_accuracy_agrees_with_a_loop(rows):
    values, groups, preferred = columns(rows)
    shares = []
    for rows_of in members(groups):
        v, p = values[rows_of], preferred[rows_of]
        top = [i for i in range(len(v)) if v[i] == v.max()]
        if len(set(p.tolist())) > 1:
            shares.append(sum(bool(p[i] == p.max()) for i in top) / len(top))
    found = n_way_accuracy(values, groups, preferred)
    assert float(found["accuracy"]) == pytest.approx(np.mean(shares) if shares else 0)
    assert int(found["num_groups"]) == len(shares)
    # Equal values are as good as chance, and what people prefer is itself always right.
    constant = n_way_accuracy(values * 0, groups, preferred)
    assert float(constant["accuracy"]) == pytest.approx(float(constant["random_accuracy"]))
    assert float(n_way_accuracy(preferred, groups, preferred)["accuracy"]) == bool(shares)


def test_chance_is_that_of_random_values():
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(4000).repeat_interleave(torch.tensor([2, 3, 4]).repeat(4000)[:4000])
    chosen = torch.rand(len(groups), generator=generator)
    found = n_way_accuracy(torch.rand(len(groups), generator=generator), groups, chosen)
    assert float(found["accuracy"]) == pytest.approx(float(found["random_accuracy"]), abs=0.03)
    assert float(found["random_accuracy"]) == pytest.approx((1 / 2 + 1 / 3 + 1 / 4) / 3, abs=1e-3)


def test_pairwise_accuracy_by_hand():
    # 7: right; 3: right, wrong by a tie, and the other pair has no choice; 9: three wrong; 8: no choice
    assert float(pairwise_accuracy(VALUES, GROUPS, CHOSEN)) == pytest.approx((1 + 1.5 + 0) / 6)
    assert float(pairwise_accuracy(VALUES, GROUPS, CHOSEN, tie=0)) == pytest.approx(2 / 6)


@settings(max_examples=40, deadline=None)
@given(ROWS, st.sampled_from([0.0, 0.5, 1.0]))
def test_pairwise_accuracy_agrees_with_a_loop(rows, tie):
    values, groups, preferred = columns(rows)
    right, seen = [], []
    for rows_of in members(groups):
        for i, j in combinations(rows_of.tolist(), 2):
            seen.append((i, j))
            if preferred[i] != preferred[j]:
                same = (values[i] > values[j]) == (preferred[i] > preferred[j])
                right.append(tie if values[i] == values[j] else float(same))
    assert float(pairwise_accuracy(values, groups, preferred, tie)) == pytest.approx(np.mean(right) if right else 0)
    first, second = pairs(groups.unique(return_inverse=True)[1])
    assert sorted(map(sorted, zip(first.tolist(), second.tolist(), strict=True))) == sorted(map(list, seen))


def test_tie_aware_accuracy_by_hand():
    # Differences of probabilities: tanh(0.5) = 0.462, tanh(0.05) = 0.05, -0.462, 0
    values = torch.tensor([1.0, 0, 0.1, 0, 0, 1, 3, 3])
    groups = torch.arange(4).repeat_interleave(2)
    chosen = torch.tensor([1.0, 0, 0.5, 0.5, 1, 0, 0, 1])
    assert float(tie_aware_accuracy(values, groups, chosen, 0)) == (1 + 0.5 + 0 + 0.5) / 4
    assert float(tie_aware_accuracy(values, groups, chosen, 0.1)) == (1 + 1 + 0 + 0.5) / 4
    assert float(tie_aware_accuracy(values, groups, chosen, 0.5)) == (0.5 + 1 + 0.5 + 0.5) / 4
    assert tuned_threshold(values, groups, chosen) == (0.1, 0.625)  # the first of equally good ones
    with pytest.raises(ValueError, match="group 3 has 3 images, not 2"):
        tie_aware_accuracy(VALUES, GROUPS, CHOSEN, 0.1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.sampled_from([0, 0.5, 1])), min_size=1, max_size=20))
def test_tie_aware_accuracy_agrees_with_pickscores_rule(rows):
    values, groups = torch.tensor([row[:2] for row in rows]).flatten(), torch.arange(len(rows)).repeat_interleave(2)
    labels = torch.tensor([(row[2], 1 - row[2]) for row in rows]).flatten()
    for threshold in (0.0, 0.3, 1.0):
        scores = []
        for (p, q), label in zip(
            values.view(-1, 2).double().softmax(dim=1).tolist(), labels[::2].tolist(), strict=True
        ):
            if abs(abs(p - q) - threshold) < 1e-9:
                return  # the two ways to compute a difference may round to either side
            said = "tie" if abs(p - q) <= threshold else "0" if p > q else "1"
            true = {0.5: "tie", 1.0: "0", 0.0: "1"}[label]
            scores.append(1 if said == true else 0.5 if "tie" in (said, true) else 0)
        assert float(tie_aware_accuracy(values, groups, labels, threshold)) == pytest.approx(np.mean(scores))


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_rank_correlations_agree_with_scipy(rows):
    values, groups, preferred = columns(rows)
    for kind, measure in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        found, expected = rank_correlations(values, groups, preferred, kind).tolist(), []
        for rows_of, correlation in zip(members(groups), found, strict=True):
            v, p = values[rows_of], preferred[rows_of]
            if len(set(p.tolist())) == 1:
                assert math.isnan(correlation)
                continue
            expected.append(0.0 if len(set(v.tolist())) == 1 else measure(v, p)[0])
            assert correlation == pytest.approx(expected[-1], abs=1e-9)
        mean = np.mean(expected) if expected else 0
        assert float(rank_correlation(values, groups, preferred, kind)) == pytest.approx(mean, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_order_of_rows_and_numbers_of_groups_do_not_matter(rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    values, groups, preferred = columns(rows)
    shuffled = values[order], groups[order] * 3 + 5, preferred[order]
    for measure in (pairwise_accuracy, rank_correlation):
        assert float(measure(*shuffled)) == pytest.approx(float(measure(values, groups, preferred)), abs=1e-12)
    found, again = n_way_accuracy(values, groups, preferred), n_way_accuracy(*shuffled)
    assert {n: float(v) for n, v in again.items()} == pytest.approx({n: float(v) for n, v in found.items()})


def test_named_results():
    none = torch.empty(0)
    assert float(n_way_accuracy(none, none.long(), none)["accuracy"]) == 0
    assert float(pairwise_accuracy(none, none.long(), none)) == float(rank_correlation(none, none.long(), none)) == 0
    assert float(tie_aware_accuracy(none, none.long(), none, 0.1)) == 0
    alone = torch.ones(1), torch.zeros(1, dtype=torch.long), torch.ones(1)
    assert {name: float(value) for name, value in n_way_accuracy(*alone).items()} == {
        "accuracy": 0, "random_accuracy": 0, "num_groups": 0, "num_undecided": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"are \(11,\), \(11,\), \(10,\): three vectors"):
        pairwise_accuracy(VALUES, GROUPS, CHOSEN[1:])
    with pytest.raises(ValueError, match="values: 1 of 11 are not finite"):
        hits(VALUES.where(VALUES != 0.9, torch.nan), GROUPS, CHOSEN)
    with pytest.raises(ValueError, match="kind=pearson: choose spearman or kendall"):
        rank_correlations(VALUES, GROUPS, CHOSEN, "pearson")


def test_batches_add_up():
    metric = PreferenceMetrics()
    for rows in (slice(0, 5), slice(5, 11)):
        metric.update(VALUES[rows], GROUPS[rows], CHOSEN[rows])
    found = metric.compute()
    expected = n_way_accuracy(VALUES, GROUPS, CHOSEN) | {
        "pairwise_accuracy": pairwise_accuracy(VALUES, GROUPS, CHOSEN),
        "spearman": rank_correlation(VALUES, GROUPS, CHOSEN),
        "kendall": rank_correlation(VALUES, GROUPS, CHOSEN, "kendall"),
    }
    assert {n: float(v) for n, v in found.items()} == pytest.approx({n: float(v) for n, v in expected.items()})
    metric.reset()
    metric.update(VALUES[:2], GROUPS[:2], CHOSEN[:2])
    assert "spearman" not in metric.compute()
