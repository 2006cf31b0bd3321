"""The one data module: any source of records for any system, in an order that depends on seed and step alone."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from src.data.batch import Batch, Record, collate, to_float
from src.data.samplers import EvaluationBatches, TrainBatches
from src.data.splits import SPLITS, Source, Split
from src.data.transform import Transform
from src.runtime.resume import batches_trained
from src.runtime.system import System


class _Lists(Dataset):
    """A split asked for many rows at once, and for some of their fields; None: all."""

    def __init__(self, rows: Split, fields: frozenset[str] | None):
        self.rows, self.fields = rows, fields

    def __getitem__(self, indices: list[int]) -> list[Record]:
        records = [self.rows[index] for index in indices]
        if self.fields is None:
            return records
        return [{name: value for name, value in record.items() if name in self.fields} for record in records]

    def __len__(self) -> int:
        return len(self.rows)


class _Loader(DataLoader):
    """A loader that Lightning takes for resumable: where to begin, its sampler reads from the trainer's progress.

    Workers start at the first batch asked for, not at `iter`, which Lightning calls before it restores the progress.
    """

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class AdData(L.LightningDataModule):
    """Train, validation and test batches of a source, with float images, on the system's device.

    Workers send uint8 images; `on_after_batch_transfer` turns them into float and applies the transforms. A transform
    makes the fields that the source lacks. Of the training rows, it also changes a share: a system that is to judge
    images without maps of their own, or regenerated ones, should have been trained on both kinds.

    Training batches follow (seed, epoch) for any number of workers, none repeats in an epoch, and training continues
    at the very batch where it stopped. Validation and test see every record once, also on several devices, in one
    fixed shuffle.

    Args:
        source: the records.
        batch_size: records per batch and device.
        num_workers: processes that load; 0 loads in the main one.
        seed: of the training order and of the transforms.
        transforms: by name, in the order in which they are applied; None: switched off.
        shares: by the transform's name, the share in [0, 1] of the training rows that it changes.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int = 32,
        num_workers: int = 2,
        seed: int = 0,
        transforms: Mapping[str, Transform | None] | None = None,
        shares: Mapping[str, float] | None = None,
    ):
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise ValueError(f"batch_size={batch_size} must be at least 1, num_workers={num_workers} at least 0.")
        names = list(transforms or {})
        self.transforms = {name: found for name, found in (transforms or {}).items() if found is not None}
        self.shares = {name: share for name, share in (shares or {}).items() if share}
        for name, share in self.shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"shares.{name}={share} must be in [0, 1].")
            if name not in self.transforms:
                raise ValueError(f"shares.{name}={share}: {self._no_transform(name)}.")
        # Numbered from the last: one that is put before the others leaves their random draws as they are.
        self._streams = {name: len(names) - number for number, name in enumerate(names)}
        self.source = source
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self._splits: dict[str, Split] = {}
        self._made, self._sent = self._plan(self.fields), None  # by transform; sent by workers, None: all

    @property
    def fields(self) -> frozenset[str]:
        """The fields of every batch."""
        return self.source.fields.union(*(transform.makes for transform in self.transforms.values()))

    @property
    def lacking(self) -> list[str]:
        """The fields that the source lacks and transforms make."""
        return sorted(self.fields - self.source.fields)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the labels."""
        return tuple(self.source.classes)

    @property
    def kinds(self) -> dict[str, dict[str, Any]]:
        """What the required system trains on besides the source's own rows, by name, as arguments of `batches`.

        The last is the farthest from the source's own and the nearest to what a reward is shown.
        """
        used = [name for name in self.transforms if self.shares.get(name) and self._made[name]]
        return {name: {"transforms": used[used.index(name) :]} for name in reversed(used)}

    def split(self, name: str) -> Split:
        """The records of "train", "val" or "test"."""
        if name not in SPLITS:
            raise ValueError(f"No split {name!r}; choose from {', '.join(SPLITS)}.")
        if name not in self._splits:
            self._splits[name] = self.source.split(name)
        return self._splits[name]

    def measured_rows(self, trainer: L.Trainer, size: int) -> int:
        """How many of the `size` rows of a split `trainer.limit_test_batches` leaves to be measured, about."""
        limit = trainer.limit_test_batches
        batches = limit if isinstance(limit, int) else limit * size / self.batch_size
        return min(size, round(batches * self.batch_size * trainer.world_size))

    def setup(self, stage: str) -> None:
        if self.trainer is not None:
            self.require(cast(System, self.trainer.lightning_module))
            if self.trainer.overfit_batches:  # pyright: ignore[reportAttributeAccessIssue]
                raise ValueError("trainer.overfit_batches is not supported; use trainer.limit_train_batches.")
        self._prepare(())

    def require(self, system: System) -> None:
        """Adapts the batches to the fields of `system`; its targets must be the source's own.

        Raises ValueError naming every field that it needs and the batches lack, or the classes that differ.
        """
        targets = system.targets
        missing = sorted((system.fields - self.fields) | (targets - self.source.fields))
        if missing:
            made = [field for field in missing if field in targets & self.fields]
            raise ValueError(
                f"{type(system).__name__} needs {', '.join(missing)}, which {type(self.source).__name__} lacks "
                f"(it has {', '.join(sorted(self.source.fields))})."
                + (f" {', '.join(made)} made by a transform cannot be used as a target." if made else "")
            )
        classes = system.classes
        if classes and classes != self.classes:
            raise ValueError(
                f"the data has the classes {', '.join(self.classes)}, the system {', '.join(classes)}; to train, "
                f"model.classes=[{','.join(self.classes)}]"
            )
        self._made = self._plan(frozenset(system.fields) - targets)
        read = (transform.fields for name, transform in self.transforms.items() if self._made[name])
        self._sent = frozenset({"key"}).union(system.fields, targets, system.optional & self.source.fields, *read)

    def _plan(self, fields: frozenset[str]) -> dict[str, frozenset[str]]:
        """What each transform has to make for a system that reads `fields`."""
        made = {}
        for name, transform in reversed(self.transforms.items()):
            made[name] = transform.makes & fields
            fields = fields | transform.fields if made[name] else fields
        return made

    def _prepare(self, names: Collection[str]) -> None:
        """Prepares the transforms for what they have to make; those of `names` change whole batches."""
        there = self.source.fields
        for name, transform in self.transforms.items():
            made = self._made[name] if name in names or self.shares.get(name) else self._made[name] - self.source.fields
            if made and (missing := sorted(transform.fields - there)):
                raise ValueError(
                    f"the transform {name} needs {', '.join(missing)}, which {type(self.source).__name__} lacks or was "
                    "not to load."
                )
            transform.prepare(made)
            there = there | transform.makes

    def _no_transform(self, name: str) -> str:
        return f"there is no transform {name}; data.transforms has {', '.join(self.transforms) or 'none'}"

    def train_dataloader(self) -> DataLoader:
        rows, (replicas, rank) = self.split("train"), self._place()
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        batches = TrainBatches(
            len(rows), self.batch_size, self.seed, replicas, rank, limit, self._trained, self._groups(rows)
        )
        if not len(batches):
            raise ValueError(
                f"The train split of {type(self.source).__name__} has {len(rows)} records, "
                f"fewer than one batch of {self.batch_size} for each of {replicas} processes."
            )
        return self._loader(rows, batches)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader:
        return self._evaluation("test")

    def batches(
        self,
        name: str,
        device: torch.device | str = "cpu",
        rows: Sequence[int] | None = None,
        transforms: Collection[str] = (),
        shuffled: bool = False,
        place: tuple[int, int] = (1, 0),
    ) -> "Batches":
        """A split in order, or these `rows` of it, as batches ready for a system on `device`.

        `transforms`: the names of those that change all rows; ValueError if there is none of a name. `shuffled`: in
        the order of validation and test, the first rows of which are a fair sample. `place`: the number of
        processes that share the rows, and the rank of this one.
        """
        for transform in transforms:
            if transform not in self.transforms:
                raise ValueError(f"{self._no_transform(transform)}.")
        self._prepare(transforms)
        whole = self.split(name)
        rows = range(len(whole)) if rows is None else rows
        groups = None if (groups := self._groups(whole)) is None else groups[list(rows)]
        batches = EvaluationBatches(len(rows), self.batch_size, *place, shuffled, groups)
        some: Any = Subset(whole, rows)
        return Batches(self, self._loader(some, batches), torch.device(device), transforms)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int = 0, transforms: Collection[str] = ()) -> Batch:
        batch = to_float(batch)
        precision = None if self.trainer is None else self.trainer.precision_plugin
        with torch.no_grad(), nullcontext() if precision is None else precision.forward_context():
            for name, transform in self.transforms.items():
                if made := self._made[name]:
                    rows = self._changed(name, len(batch["key"]), name in transforms)
                    self._apply(transform, batch, made, rows)
        return batch

    def _apply(self, transform: Transform, batch: Batch, made: frozenset[str], rows: torch.Tensor) -> None:
        """Makes the fields that the source lacks for all rows of a batch, the others for the given rows."""
        seed = self._trained() + self.seed * (1 << 32)
        transform.to(next(value.device for value in batch.values() if isinstance(value, torch.Tensor)))
        if lacking := made - self.source.fields:
            batch |= transform(batch, lacking, seed)
        if len(rows) and (own := made & self.source.fields):
            read = {field: batch[field] for field in transform.fields | {"key"}}
            some = {f: v[rows] if isinstance(v, torch.Tensor) else [v[i] for i in rows] for f, v in read.items()}
            for field, values in transform(some, own, seed).items():
                batch[field][rows] = values.to(batch[field])

    def _changed(self, name: str, size: int, whole: bool) -> torch.Tensor:
        """The rows of a batch that a transform changes: all, or those of a training batch that fall to its share, a
        function of (seed, batch, rank).
        """
        if whole:
            return torch.arange(size)
        if name not in self.shares or self.trainer is None or not self.trainer.training:
            return torch.empty(0, dtype=torch.long)
        rng = np.random.default_rng([self.seed, self._trained(), self.trainer.global_rank, self._streams[name]])
        return torch.from_numpy(np.flatnonzero(rng.random(size) < self.shares[name]))

    def _place(self) -> tuple[int, int]:
        """The number of processes and the rank of this one."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _trained(self) -> int:
        return 0 if self.trainer is None else batches_trained(self.trainer)

    def _evaluation(self, name: str) -> DataLoader:
        rows = self.split(name)
        batches = EvaluationBatches(len(rows), self.batch_size, *self._place(), True, self._groups(rows))
        return self._loader(rows, batches)

    def _groups(self, rows: Split) -> np.ndarray | None:
        """The group of every record, if the system needs whole groups."""
        return rows.groups if "group" in (self._sent or ()) else None

    def _loader(self, rows: Split, batches: DistributedSampler) -> DataLoader:
        # The batches go in as a sampler of lists (batch_size=None): Lightning replaces any sampler that is not a
        # DistributedSampler by its own, which pads evaluation with duplicates and does not know where to resume.
        return _Loader(
            _Lists(rows, self._sent),
            batch_size=None,
            sampler=batches,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            prefetch_factor=4 if self.num_workers else None,
            pin_memory=self.trainer is not None and not isinstance(self.trainer.accelerator, CPUAccelerator),
        )


class Batches:
    """The batches of a loader as a trainer would hand them over: on the device, with float images, transformed."""

    def __init__(self, data: AdData, loader: DataLoader, device: torch.device, transforms: Collection[str]):
        self.data, self.loader, self.device, self.transforms = data, loader, device, transforms

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            moved = self.data.transfer_batch_to_device(batch, self.device, 0)
            yield self.data.on_after_batch_transfer(moved, transforms=self.transforms)
