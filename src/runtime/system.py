"""The base class of every model: what `fit`, `evaluate`, checkpoint folders and the data module know of one."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from src.runtime.schedules import adamw


class System(L.LightningModule, ABC):
    """A model with its loss, its metrics and what it writes.

    A subclass sets `fields`, `net` and the optimizer's `lr`, `weight_decay` and `warmup`, and writes `training_step`
    and `evaluation_step`. Training data are batches (`src/data/batch.py`); `net` alone is stored in checkpoint folders.
    """

    fields: frozenset[str]  # of the batch that it reads
    targets: frozenset[str] = frozenset()  # those that it learns or is measured by: the data must have them themselves
    classes: tuple[str, ...] = ()  # names of its labels, which must be the data's; none: it has no labels
    monitor: tuple[str, str] | None = None  # metric that names the best state, and "min" or "max"
    card: Mapping[str, str] = {}  # texts of the model card, by the names in `src.runtime.checkpoint.ABOUT`
    own_layout = False  # True: `save_weights` writes another library's files, which the constructor reads
    net: Any  # an nn.Module
    lr: float  # peak of the learning rate
    weight_decay: float
    warmup: float  # share of the steps until the peak
    schedule = "cosine"  # see `src.runtime.schedules.pace`

    @abstractmethod
    def evaluation_step(self, batch: dict[str, Any], split: str) -> None:
        """Logs or gathers the metrics of a batch of `split`, "val" or "test", as `<split>/<name>`."""

    def evaluation_end(self, split: str) -> None:
        """Logs the metrics that were gathered over an epoch of `split`."""

    def validation_step(self, batch: dict[str, Any]) -> None:
        self.evaluation_step(batch, "val")

    def test_step(self, batch: dict[str, Any]) -> None:
        self.evaluation_step(batch, "test")

    def on_validation_epoch_end(self) -> None:
        self.evaluation_end("val")

    def on_test_epoch_end(self) -> None:
        self.evaluation_end("test")

    def configure_optimizers(self) -> Any:
        return adamw(self, self.lr, self.weight_decay, self.warmup, self.schedule)

    def calibrate(self, batches: Iterable[dict[str, Any]]) -> None:
        """Sets what training does not, such as a temperature, by validation batches; in eval mode, after training."""

    def report(self, data: Any, folder: Path) -> list[Path]:
        """Draws figures of the test split of an `AdData` into `folder`; gives the files."""
        return []

    def assets(self, folder: Path) -> dict[str, Any]:
        """Writes what a checkpoint folder needs besides weights; gives the arguments that differ from the run's."""
        return {}

    def save_weights(self, folder: Path, dtype: torch.dtype) -> None:
        """With `own_layout`: writes the weights to a checkpoint folder."""
        raise NotImplementedError(f"{type(self).__name__} has no layout of its own.")
