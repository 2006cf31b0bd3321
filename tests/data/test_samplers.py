from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.samplers import EvaluationBatches, TrainBatches


def batches_of(num, size, replicas, *, epoch=0, seed=0):
    whole = num // (size * replicas)
    ranks = [TrainBatches(num, size, seed, replicas, r, position=lambda: epoch * whole) for r in range(replicas)]
    return [list(rank) for rank in ranks]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
def test_training_shows_no_record_twice_and_loses_less_than_a_global_batch(num, size, replicas, epoch):
    if num < size * replicas:
        return
    ranks = batches_of(num, size, replicas, epoch=epoch)
    assert {len(batches) for batches in ranks} == {num // (size * replicas)}
    shown = [i for batches in ranks for batch in batches for i in batch]
    assert len(set(shown)) == len(shown) > num - size * replicas
    assert set(shown) <= set(range(num))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 5), st.booleans())
def test_evaluation_shows_every_record_once(num, size, replicas, shuffled):
    ranks = [EvaluationBatches(num, size, replicas, rank, shuffled) for rank in range(replicas)]
    assert Counter(i for rank in ranks for batch in rank for i in batch) == Counter(range(num))
    assert all(0 < len(batch) <= size for rank in ranks for batch in rank)
    assert all(len(rank) == len(list(rank)) for rank in ranks)
    if size > 1 and num >= replicas:  # equally many, or a collective operation would wait for ever
        assert len({len(rank) for rank in ranks}) == 1


def test_a_short_evaluation_is_a_random_sample():
    (first, *_), again = EvaluationBatches(1000, 50, shuffled=True), EvaluationBatches(1000, 50, shuffled=True)
    assert 350 < sum(first) / 50 < 650
    assert max(first) - min(first) > 800
    assert next(iter(again)) == first
    assert next(iter(EvaluationBatches(1000, 50))) == list(range(50))


def test_ranks_together_train_on_the_batches_of_one_process():
    two, one = batches_of(64, 4, 2), batches_of(64, 8, 1)
    assert [a + b for a, b in zip(*two, strict=True)] == one[0]


def test_order_depends_on_seed_and_epoch_alone():
    first = batches_of(64, 4, 1)
    assert first == batches_of(64, 4, 1)
    assert first != batches_of(64, 4, 1, epoch=1)
    assert first != batches_of(64, 4, 1, seed=1)


@pytest.mark.parametrize("position", [0, 1, 5, 6, 13])
def test_a_resumed_order_is_the_rest_of_an_unbroken_one(position):
    whole = [batch for epoch in range(3) for batch in batches_of(26, 4, 1, epoch=epoch)[0]]
    epoch_end = (position // 6 + 1) * 6
    assert list(TrainBatches(26, 4, 0, position=lambda: position)) == whole[position:epoch_end]


@pytest.mark.parametrize("limit", [4, 0.7])
def test_a_limited_epoch_is_shorter_and_still_reshuffled(limit):
    batches = TrainBatches(26, 4, 0, limit=limit, position=lambda: 4)
    assert len(batches) == 6  # of the whole epoch: Lightning takes its share of that
    assert list(batches) == batches_of(26, 4, 1, epoch=1)[0][:4]


def groups_of(sizes: list[int], seed: int = 0) -> np.ndarray:
    """The groups of records that lie scattered, named by large numbers."""
    groups = np.repeat(np.arange(len(sizes)) * 1000 + 7, sizes)
    return np.random.default_rng(seed).permutation(groups)


def grouped(groups: np.ndarray, size: int, replicas: int = 1, epoch: int = 0, seed: int = 0) -> list[list[list[int]]]:
    ranks = [TrainBatches(len(groups), size, seed, replicas, rank, groups=groups) for rank in range(replicas)]
    for rank in ranks:
        rank.position = lambda: epoch * len(ranks[0])
    return [list(rank) for rank in ranks] if len(ranks[0]) else [[]] * replicas


sizes_of_groups = st.lists(st.integers(1, 5), max_size=60)


@settings(max_examples=100, deadline=None)
@given(sizes_of_groups, st.integers(5, 12), st.integers(1, 3), st.integers(0, 2))
def test_training_never_splits_a_group_and_leaves_little_out(sizes, size, replicas, epoch):
    groups = groups_of(sizes)
    ranks = grouped(groups, size, replicas, epoch)
    batches = [batch for rank in ranks for batch in rank]
    assert len({len(rank) for rank in ranks}) == 1
    shown = Counter(i for batch in batches for i in batch)
    assert set(shown.values()) <= {1}
    for batch in batches:
        assert size - max(sizes) < len(batch) <= size  # no room for one more of the largest groups
        for group in set(groups[batch]):
            assert set(np.flatnonzero(groups == group)) <= set(batch)
    assert sum(sizes) - len(shown) < size * replicas


def test_batches_of_unequal_groups_are_nearly_full_and_differ_between_epochs():
    groups = groups_of(np.random.default_rng(1).integers(2, 5, 3000).tolist())
    (first,), (second,), (again,) = (grouped(groups, 16, epoch=epoch) for epoch in (0, 1, 0))
    assert first == again != second
    assert len(first) == len(second)
    assert np.mean([len(batch) for batch in first]) > 15.5  # no group has one record, to fill a last place
    assert len({i for batch in first for i in batch}) >= len(groups) - 16
    mates = {frozenset(groups[batch].tolist()) for batch in first} & {frozenset(groups[b].tolist()) for b in second}
    assert not mates  # other groups meet in each epoch
    assert grouped(groups, 16, seed=1) != [first]


def test_groups_of_one_record_are_no_groups():
    alone = np.random.default_rng(0).permutation(50)
    ranks = [TrainBatches(50, 4, 3, 2, rank, position=lambda: 7) for rank in (0, 1)]
    assert [list(rank) for rank in ranks] == [
        list(TrainBatches(50, 4, 3, 2, rank, position=lambda: 7, groups=alone)) for rank in (0, 1)
    ]
    plain = [EvaluationBatches(50, 4, 2, rank, shuffled=True).batches for rank in (0, 1)]
    assert plain == [EvaluationBatches(50, 4, 2, rank, shuffled=True, groups=alone).batches for rank in (0, 1)]


@pytest.mark.parametrize("position", [0, 3, 17, 30])
def test_resuming_with_groups_continues_at_the_next_batch(position):
    groups = groups_of([2, 3, 4] * 20)
    whole = [batch for epoch in range(3) for batch in grouped(groups, 8, epoch=epoch)[0]]
    one = len(TrainBatches(len(groups), 8, 0, groups=groups))
    resumed = TrainBatches(len(groups), 8, 0, position=lambda: position, groups=groups)
    assert list(resumed) == whole[position : (position // one + 1) * one]


@settings(max_examples=100, deadline=None)
@given(sizes_of_groups, st.integers(5, 12), st.integers(1, 4), st.booleans())
def test_evaluation_shows_every_group_once_and_whole(sizes, size, replicas, shuffled):
    groups = groups_of(sizes)
    ranks = [EvaluationBatches(len(groups), size, replicas, r, shuffled, groups).batches for r in range(replicas)]
    batches = [batch for rank in ranks for batch in rank]
    assert Counter(i for batch in batches for i in batch) == Counter(range(len(groups)))
    assert all(0 < len(batch) <= size for batch in batches)
    assert sum(len(set(groups[batch])) for batch in batches) == len(sizes)
    if len(sizes) >= replicas and max(Counter(len(set(groups[batch])) for batch in batches), default=0) > 1:
        assert len({len(rank) for rank in ranks}) == 1


def test_a_group_larger_than_a_batch_is_refused():
    with pytest.raises(ValueError, match="group 1007 has 4 records, more than batch_size=3"):
        TrainBatches(6, 3, 0, groups=groups_of([2, 4]))
    with pytest.raises(ValueError, match="3 groups for 4 records"):
        EvaluationBatches(4, 3, groups=groups_of([2, 1]))
