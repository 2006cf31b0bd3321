"""Which records make up which batch, in every process: functions of seed and step alone.

Records may come in groups, such as the images among which a person chose: a group is never split over batches or
processes. `groups` has the group of each record; None: each record is a group of its own.
"""

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import DistributedSampler


class TrainBatches(DistributedSampler):
    """The shuffled batches of one epoch for one process, as lists of indices, from the step reached onwards.

    The order is a pure function of (seed, epoch). `position` tells how many batches the run has trained on, in all
    epochs; iteration starts right there, at no cost, so a resumed run needs no state of its own. Rank r gets every
    `num_replicas`-th batch, from batch r on: no index twice in an epoch, all ranks equally many batches.

    Batches have at most `batch_size` records and room for no further group of the largest size: without groups they are
    full. What does not make such a batch for every rank is left out of the epoch. `limit` is
    `trainer.limit_train_batches`; the length is that of the whole epoch, of which Lightning takes its share.

    Raises ValueError for a group larger than a batch.
    """

    def __init__(
        self,
        num_records: int,
        batch_size: int,
        seed: int,
        num_replicas: int = 1,
        rank: int = 0,
        limit: float = 1.0,
        position: Callable[[], int] = lambda: 0,
        groups: np.ndarray | None = None,
    ):
        super().__init__(range(num_records), num_replicas, rank, seed=seed)  # pyright: ignore[reportArgumentType]
        self.records, self.starts = _by_group(num_records, batch_size, groups)
        # Batch j has groups of the same sizes in every epoch, so that all epochs have equally many batches.
        sizes = np.diff(self.starts)
        packed, self.ends = _packed(sizes[np.random.default_rng(seed).permutation(len(sizes))], batch_size)
        self.sizes, self.places = sizes, np.argsort(packed, kind="stable")
        self.whole, self.position = len(self.ends) // num_replicas, position
        self.num_batches = min(limit, self.whole) if isinstance(limit, int) else int(limit * self.whole)

    def __len__(self) -> int:
        return self.whole

    def __iter__(self) -> Iterator[list[int]]:
        epoch, start = divmod(self.position(), self.num_batches)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.sizes))
        order[self.places] = order[np.argsort(self.sizes[order], kind="stable")]
        for j in range(start, self.num_batches):
            batch = j * self.num_replicas + self.rank
            first = self.ends[batch - 1] if batch else 0
            yield _records(self.records, self.starts, order[first : self.ends[batch]])


class EvaluationBatches(DistributedSampler):
    """Every record exactly once over all processes, as lists of indices of nearly equal length.

    In order, or `shuffled`, always in the same way: then the first batches, to which trainer.limit_val_batches or
    limit_test_batches may cut an evaluation, are a fair sample of data whose neighbours are alike. All ranks get
    equally many batches (collective operations never deadlock), except that a rank without a group left gets
    none: that needs fewer groups than ranks, or batches of one group each.
    """

    def __init__(
        self,
        num_records: int,
        batch_size: int,
        num_replicas: int = 1,
        rank: int = 0,
        shuffled: bool = False,
        groups: np.ndarray | None = None,
    ):
        super().__init__(range(num_records), num_replicas, rank)  # pyright: ignore[reportArgumentType]
        records, starts = _by_group(num_records, batch_size, groups)
        count = len(starts) - 1
        order = np.random.default_rng(0).permutation(count) if shuffled else np.arange(count)
        bounds = _bounds(np.diff(starts)[order], batch_size, num_replicas)
        mine = [order[bounds[c] : bounds[c + 1]] for c in range(rank, len(bounds) - 1, num_replicas)]
        self.batches = [_records(records, starts, batch) for batch in mine if len(batch)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def _by_group(num_records: int, batch_size: int, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The records, group by group in the order of their first ones, and where each group begins and the last ends."""
    if groups is None:
        return np.arange(num_records), np.arange(num_records + 1)
    names, first, inverse, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    if len(groups) != num_records:
        raise ValueError(f"there are {len(groups)} groups for {num_records} records.")
    if (largest := sizes.max(initial=0)) > batch_size:
        raise ValueError(f"group {names[sizes.argmax()]} has {largest} records, more than batch_size={batch_size}.")
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return np.argsort(place[inverse], kind="stable"), np.concatenate([[0], np.cumsum(sizes[order])])


def _records(records: np.ndarray, starts: np.ndarray, groups: np.ndarray) -> list[int]:
    return [record for group in groups for record in records[starts[group] : starts[group + 1]].tolist()]


def _packed(sizes: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """The sizes of groups, batch by batch, each group in the fullest batch that has room for it, and the batches' ends.

    A last batch with room for one more group of the largest size has no end.
    """
    largest = int(sizes.max(initial=1))
    if (sizes == largest).all():
        each = room // largest
        return sizes, np.arange(each, len(sizes) + 1, each)
    batches: list[list[int]] = []
    left: list[list[int]] = [[] for _ in range(room + 1)]  # the batches that have room for so many records
    for size in sizes.tolist():
        fits = next((fits for fits in range(size, room + 1) if left[fits]), None)
        if fits is None:
            fits, number = room, len(batches)
            batches.append([])
        else:
            number = left[fits].pop()
        batches[number].append(size)
        left[fits - size].append(number)
    batches.sort(key=lambda batch: room - sum(batch) >= largest)
    full = [len(batch) for batch in batches if room - sum(batch) < largest]
    return np.concatenate([np.array(batch) for batch in batches]), np.cumsum(full)


def _bounds(sizes: np.ndarray, batch_size: int, replicas: int) -> np.ndarray:
    """The least group of each batch and the end, for equally many batches of nearly equally many groups per process."""
    records = np.concatenate([[0], np.cumsum(sizes)])
    rounds = -(-int(records[-1]) // (batch_size * replicas))
    while True:
        bounds = np.arange(rounds * replicas + 1) * len(sizes) // max(rounds * replicas, 1)
        if np.diff(records[bounds]).max(initial=0) <= batch_size:
            return bounds
        rounds += 1 + rounds // 16
