"""The base class of all models, used by `fit`, `evaluate`, checkpoint folders and the data module."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from src.runtime.progress import comparison, table
from src.runtime.schedules import adamw


class System(L.LightningModule, ABC):
    """A model with its loss, metrics and output files.

    A subclass sets `fields`, `net`, `lr`, `weight_decay` and `warmup`, and implements `training_step` and
    `evaluation_step` for batches (`src/data/batch.py`). Checkpoint folders contain only the weights of `net`.
    """

    fields: frozenset[str]  # batch fields it reads
    targets: frozenset[str] = frozenset()  # fields it is trained or evaluated on, which the data set must provide
    optional: frozenset[str] = frozenset()  # fields it also reads if the data set has them
    classes: tuple[str, ...] = ()  # names of its labels, which must equal those of the data set; empty: no labels
    monitor: tuple[str, str] | None = None  # metric that selects the best weights, and "min" or "max"
    card: Mapping[str, str] = {}  # texts of the model card by name (`src.runtime.card.ABOUT`)
    own_layout = False  # True: `save_weights` writes the layout of another library, which the constructor reads
    net: Any  # an nn.Module
    lr: float  # peak learning rate
    weight_decay: float
    warmup: float  # share of the steps
    schedule = "cosine"  # see `src.runtime.schedules.pace`

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """As Lightning's; `val...` and `test...` are those of the records of all processes."""
        if name.startswith(("val", "test")):
            options["sync_dist"] = True
        super().log(name, value, *args, **options)

    @abstractmethod
    def evaluation_step(self, batch: dict[str, Any], split: str) -> None:
        """Logs or accumulates the metrics of a batch of `split`, "val" or "test", as `<split>/<name>`."""

    def evaluation_end(self, split: str) -> None:
        """Logs the metrics that were accumulated over an epoch of `split`."""

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
        """Calibrates the model on validation batches after training, for example a temperature; in eval mode."""

    def tables(self, measured: Mapping[str, Mapping[str, float]]) -> str:
        """Metrics named `<split>/<name>` of one or several checkpoints, by folder, as text for `src.evaluate`."""
        return comparison(measured) if len(measured) > 1 else table(*measured.values())

    def report(self, data: Any, folder: Path) -> list[Path]:
        """Draws figures of the test split of an `AdData` in `folder`; returns the files."""
        return []

    def assets(self, folder: Path) -> dict[str, Any]:
        """Writes the files of a checkpoint folder besides weights; returns the arguments that differ from the run."""
        return {}

    def save_weights(self, folder: Path, dtype: torch.dtype) -> None:
        """With `own_layout`: writes the weights to a checkpoint folder."""
        raise NotImplementedError(f"{type(self).__name__} has no layout of its own.")
