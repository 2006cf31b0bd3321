"""The one data module: any source of records for any system, in an order that depends on seed and step alone."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Protocol, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from src.data.batch import Batch, Record, collate, to_float
from src.data.samplers import EvaluationBatches, TrainBatches
from src.data.splits import SPLITS
from src.models.perception.system import load_perception
from src.runtime.resume import batches_trained
from src.runtime.system import System

PERCEIVED = ("depth", "saliency")  # fields that a net can make from the image


class Rows(Protocol):
    """A split: a sized, indexable collection of records; a record depends on its index alone."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


class Source(Protocol):
    """A data set: the fields that all its records carry, the names of its classes, and its splits."""

    @property
    def fields(self) -> frozenset[str]: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def split(self, name: str) -> Rows: ...


class _Lists(Dataset):
    """A split asked for many rows at once, and for some of their fields; None: all."""

    def __init__(self, rows: Rows, fields: frozenset[str] | None):
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
    """Train, validation and test batches of a source, float pictures on the system's device.

    Workers send uint8 pictures; `on_after_batch_transfer` turns them into float and lets frozen perception nets fill
    the fields that the source lacks. Training batches follow (seed, epoch) for any number of workers, none repeats in
    an epoch, and training continues at the very batch where it stopped. Validation and test see every record once,
    also on several devices, in one fixed shuffle.

    Args:
        source: the records.
        batch_size: records per batch and device.
        num_workers: processes that load; 0 loads in the main one.
        seed: of the training order.
        perception: checkpoint folder per missing field, e.g. {"depth": "checkpoints/depth"}.
        perceived: share in [0, 1] of the training rows whose maps those nets make although the source has them: a
            system that is to judge pictures without maps of their own should have met both kinds.
        repaint: gives the pictures of a batch another look that leaves all other fields true, see
            `src.diffusion.repaint`; a system that is to judge a generator's pictures should have met its hand.
        repainted: share in [0, 1] of the training rows that it changes, before any map is made.

    A system says what it needs: `fields`, and is sent no others; `targets`, those of them that it learns, which must be
    the source's own, or it would be measured against another net; and `classes`, if its labels have names.

    Raises ValueError at `setup` if the system needs a field that neither the source nor perception gives.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int = 32,
        num_workers: int = 2,
        seed: int = 0,
        perception: Mapping[str, str] | None = None,
        perceived: float = 0.0,
        repaint: torch.nn.Module | None = None,
        repainted: float = 0.0,
    ):
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise ValueError(f"batch_size={batch_size} must be at least 1, num_workers={num_workers} at least 0.")
        for field in perception or {}:
            if field not in PERCEIVED:
                raise ValueError(f"perception: no net makes the field {field!r}; choose from {', '.join(PERCEIVED)}.")
        for name, share in (("perceived", perceived), ("repainted", repainted)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share} must be in [0, 1].")
        if repainted and repaint is None:
            raise ValueError(f"repainted={repainted}, but there is no repaint.")
        if repaint is not None and (missing := sorted(cast(Any, repaint).fields - source.fields)):
            raise ValueError(
                f"repaint needs {', '.join(missing)}, which {type(source).__name__} lacks or was not to load."
            )
        self.source = source
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.perceived, self.repaint, self.repainted = perceived, repaint, repainted
        self.perception = {f: place for f, place in (perception or {}).items() if perceived or f not in source.fields}
        self._splits: dict[str, Rows] = {}
        self._nets: dict[str, torch.nn.Module] = {}
        self._wanted: frozenset[str] | None = None  # the perceived fields that the system looks at; None: all
        self._sent: frozenset[str] | None = None  # the fields that workers send; None: all

    @property
    def fields(self) -> frozenset[str]:
        """The fields of every batch."""
        return frozenset(self.source.fields) | self.perception.keys()

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the labels."""
        return tuple(self.source.classes)

    @property
    def kinds(self) -> dict[str, dict[str, bool]]:
        """What the required system trains on besides the source's own rows, by name, as arguments of `batches`.

        The last is the farthest from the source's own and the nearest to what a reward is shown.
        """
        wanted = self.perception.keys() if self._wanted is None else self._wanted & self.perception.keys()
        perceived = bool(self.perceived and wanted)
        found = {"perceived": {"perceived": True}} if perceived else {}
        return found | ({"repainted": {"perceived": perceived, "repainted": True}} if self.repainted else {})

    def split(self, name: str) -> Rows:
        """The records of "train", "val" or "test"."""
        if name not in SPLITS:
            raise ValueError(f"No split {name!r}; choose from {', '.join(SPLITS)}.")
        if name not in self._splits:
            self._splits[name] = self.source.split(name)
        return self._splits[name]

    def setup(self, stage: str) -> None:
        if self.trainer is not None:
            self.require(cast(System, self.trainer.lightning_module))
            if getattr(self.trainer, "overfit_batches", 0):
                raise ValueError("trainer.overfit_batches is not supported; use trainer.limit_train_batches.")
        self.perceive()

    def perceive(self) -> None:
        """Loads the perception nets that the system wants and that are not loaded yet."""
        for field, place in self.perception.items():
            if field not in self._nets and (self._wanted is None or field in self._wanted):
                self._nets[field] = load_perception(place, field)

    def require(self, system: System) -> None:
        """Raises ValueError naming every field that `system` needs and the batches lack, or the classes that differ."""
        targets = system.targets
        missing = sorted((system.fields - self.fields) | (targets - self.source.fields))
        if missing:
            fillable = [f"data.perception.{f}=FOLDER" for f in missing if f in PERCEIVED and f not in targets]
            learnt = [f for f in missing if f in targets & self.perception.keys()]
            raise ValueError(
                f"{type(system).__name__} needs {', '.join(missing)}, which {type(self.source).__name__} lacks "
                f"(it has {', '.join(sorted(self.source.fields))})."
                + (f" A perception net can fill it: {' '.join(fillable)}" if fillable else "")
                + (
                    f" A perception net's {', '.join(learnt)} is nothing to learn from or to measure by."
                    if learnt
                    else ""
                )
            )
        classes = system.classes
        if classes and classes != self.classes:
            raise ValueError(
                f"the data has the classes {', '.join(self.classes)}, the system {', '.join(classes)}; to train, "
                f"model.classes=[{','.join(self.classes)}]"
            )
        self._wanted = frozenset(system.fields) - targets
        looks: set[str] = {"image"} if self._wanted & self.perception.keys() else set()
        looks |= cast(Any, self.repaint).fields if self.repaint is not None else set()
        self._sent = frozenset({"key", *system.fields, *targets, *looks})

    def train_dataloader(self) -> DataLoader:
        rows, (replicas, rank) = self.split("train"), self._place()
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        if len(rows) < self.batch_size * replicas:
            raise ValueError(
                f"The train split of {type(self.source).__name__} has {len(rows)} records, "
                f"fewer than one batch of {self.batch_size} for each of {replicas} processes."
            )
        batches = TrainBatches(len(rows), self.batch_size, self.seed, replicas, rank, limit, self._trained)
        return self._loader(rows, batches)

    def val_dataloader(self) -> DataLoader:
        return self._evaluation("val", *self._place())

    def test_dataloader(self) -> DataLoader:
        return self._evaluation("test", *self._place())

    def batches(
        self,
        name: str,
        device: torch.device | str = "cpu",
        first: int = 0,
        perceived: bool = False,
        repainted: bool = False,
        shuffled: bool = False,
    ) -> "Batches":
        """A split in order from row `first` on, in this process alone, as batches ready for a system on `device`.

        `shuffled`: in the order of validation and test, the first rows of which are a fair sample.
        `perceived`: all maps are the nets', also where the source has its own. `repainted`: all pictures are. Raises
        ValueError if there is no net to do it.
        """
        self.perceive()
        if perceived and not self._nets:
            raise ValueError(
                "perceived: no perception net is there to make maps; set data.perception, and data.perceived above 0."
            )
        if repainted and self.repaint is None:
            raise ValueError("repainted: nothing is there to repaint pictures, as data=repainted has it.")
        rows: Any = Subset(cast(Any, self.split(name)), range(first, len(self.split(name))))
        loader = self._loader(rows, EvaluationBatches(len(rows), self.batch_size, shuffled=shuffled))
        return Batches(self, loader, torch.device(device), perceived, repainted)

    def on_after_batch_transfer(
        self, batch: Batch, dataloader_idx: int = 0, perceived: bool = False, repainted: bool = False
    ) -> Batch:
        batch = to_float(batch)
        size, precision = len(batch["key"]), None if self.trainer is None else self.trainer.precision_plugin
        with torch.no_grad(), nullcontext() if precision is None else precision.forward_context():
            rows = self._chosen(size, self.repainted, 2, repainted)
            if self.repaint is not None and len(rows):
                some = {f: v[rows] if isinstance(v, torch.Tensor) else [v[i] for i in rows] for f, v in batch.items()}
                painted = self.repaint.to(batch["image"].device)(some, seed=self._trained() + self.seed * (1 << 32))
                batch["image"][rows] = painted.to(batch["image"])
            rows = self._chosen(size, self.perceived, 1, perceived)
            for field, net in self._nets.items():
                image = batch["image"]
                if field not in self.source.fields:
                    batch[field] = net.to(image.device)(image)
                elif len(rows):
                    batch[field][rows] = net.to(image.device)(image[rows]).to(batch[field])
        return batch

    def _chosen(self, size: int, share: float, stream: int, whole: bool) -> torch.Tensor:
        """All rows of a batch, or those of a training batch that fall to `share`: a function of (seed, batch, rank)."""
        if whole:
            return torch.arange(size)
        if not share or self.trainer is None or not self.trainer.training:
            return torch.empty(0, dtype=torch.long)
        rng = np.random.default_rng([self.seed, self._trained(), self.trainer.global_rank, stream])
        return torch.from_numpy(np.flatnonzero(rng.random(size) < share))

    def _place(self) -> tuple[int, int]:
        """The number of processes and the rank of this one."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _trained(self) -> int:
        return 0 if self.trainer is None else batches_trained(self.trainer)

    def _evaluation(self, name: str, replicas: int, rank: int) -> DataLoader:
        rows = self.split(name)
        return self._loader(rows, EvaluationBatches(len(rows), self.batch_size, replicas, rank, shuffled=True))

    def _loader(self, rows: Rows, batches: DistributedSampler) -> DataLoader:
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
    """The batches of a loader as a trainer would hand them over: on the device, pictures in float, maps filled in."""

    def __init__(self, data: AdData, loader: DataLoader, device: torch.device, perceived: bool, repainted: bool):
        self.data, self.loader, self.device = data, loader, device
        self.perceived, self.repainted = perceived, repainted

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            moved = self.data.transfer_batch_to_device(batch, self.device, 0)
            yield self.data.on_after_batch_transfer(moved, perceived=self.perceived, repainted=self.repainted)
