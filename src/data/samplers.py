"""Which records make up which batch, in every process: functions of seed and step alone."""

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import DistributedSampler


class TrainBatches(DistributedSampler):
    """The shuffled batches of one epoch for one process, as lists of indices, from the step reached onwards.

    The order is a pure function of (seed, epoch). `position` tells how many batches the run has trained on, in all
    epochs; iteration starts right there, at no cost, so a resumed run needs no state of its own. Batch j of rank r is
    slice (j, r) of the order: no index twice in an epoch, at most one global batch's worth of indices left out.
    `limit` is `trainer.limit_train_batches`; the length is that of the whole epoch, of which Lightning takes its share.
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
    ):
        super().__init__(range(num_records), num_replicas, rank, seed=seed)  # pyright: ignore[reportArgumentType]
        whole = num_records // (batch_size * num_replicas)
        self.num_records, self.batch_size, self.position = num_records, batch_size, position
        self.whole = whole
        self.num_batches = min(limit, whole) if isinstance(limit, int) else int(limit * whole)

    def __len__(self) -> int:
        return self.whole

    def __iter__(self) -> Iterator[list[int]]:
        epoch, start = divmod(self.position(), self.num_batches)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_records)
        for j in range(start, self.num_batches):
            first = (j * self.num_replicas + self.rank) * self.batch_size
            yield order[first : first + self.batch_size].tolist()


class EvaluationBatches(DistributedSampler):
    """Every record exactly once over all processes, as lists of indices of nearly equal length.

    In order, or `shuffled`, always in the same way: then the first batches, to which trainer.limit_val_batches or
    limit_test_batches may cut an evaluation, are a fair sample of data whose neighbours are alike. All ranks get
    equally many batches (collective operations never wait in vain), except that a rank without a record left gets
    none: that needs a batch size of 1 or fewer records than ranks.
    """

    def __init__(self, num_records: int, batch_size: int, num_replicas: int = 1, rank: int = 0, shuffled: bool = False):
        super().__init__(range(num_records), num_replicas, rank)  # pyright: ignore[reportArgumentType]
        chunks = -(-num_records // (batch_size * num_replicas)) * num_replicas
        bounds = [chunk * num_records // max(chunks, 1) for chunk in range(chunks + 1)]
        mine = range(rank, chunks, num_replicas)
        order = np.random.default_rng(0).permutation(num_records) if shuffled else np.arange(num_records)
        self.batches = [order[bounds[c] : bounds[c + 1]].tolist() for c in mine if bounds[c] < bounds[c + 1]]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
