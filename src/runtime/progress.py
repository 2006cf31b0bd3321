"""Progress and metrics as lines of text."""

import io
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from tqdm import tqdm

EVERY = 10.0  # seconds between lines


class Lines(Callback):
    """Prints the progress as a line every few seconds, for logs and pipes."""

    def __init__(self) -> None:
        self.since = self.begun = time.monotonic()
        self.first = 0

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.since = self.begun = time.monotonic()
        self.first = trainer.global_step

    @rank_zero_only
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now, step, total = time.monotonic(), trainer.global_step, trainer.estimated_stepping_batches
        if step != total and now - self.since < EVERY:
            return
        self.since = now
        rate = (step - self.first) / max(now - self.begun, 1e-9)
        left = f", {duration((total - step) / rate)} left" if rate and total != float("inf") else ""
        metrics = shown(trainer.progress_bar_metrics, "train/")
        print(f"step {step}/{total}  {metrics}  {rate:.2f} steps/s{left}", flush=True)

    @rank_zero_only
    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            print(f"step {trainer.global_step}  {shown(trainer.callback_metrics, 'val/')}", flush=True)


def shown(metrics: Mapping[str, Any], prefix: str) -> str:
    return "  ".join(f"{name} {float(value):.4f}" for name, value in metrics.items() if name.startswith(prefix))


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def table(metrics: Mapping[str, float]) -> str:
    """One line per metric; test/x also shows test/before_x, if it exists."""
    width, before = max(map(len, metrics), default=0), "test/before_"
    was = {name: metrics.get(before + name.removeprefix("test/")) for name in metrics}
    return "\n".join(
        f"{name:<{width}}  {value:8.4f}" + ("" if was[name] is None else f"  before {was[name]:8.4f}")
        for name, value in metrics.items()
        if not name.startswith(before)
    )


def columns(head: Sequence[str], rows: Sequence[Sequence[str | float | None]]) -> str:
    """A table with a head: texts to the left, numbers to the right with four decimals, "-" for None."""
    cells = [list(head), *([f"{c:.4f}" if isinstance(c, float) else c or "-" for c in row] for row in rows)]
    texts = [all(isinstance(row[column], str) for row in rows) for column in range(len(head))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(row, widths, texts, strict=True)
        ).rstrip()
        for row in cells
    )


def comparison(measured: Mapping[str, Mapping[str, float]]) -> str:
    """The metrics of several models, by the models' names: one line per metric, one column per model."""
    names = list(dict.fromkeys(name for metrics in measured.values() for name in metrics))
    rows = [[name, *(metrics.get(name) for metrics in measured.values())] for name in names]
    return columns(["metric", *measured], rows)


def progress_bar(total: int, done: int = 0, desc: str | None = None, unit: str = "ad") -> tqdm:
    """A progress bar in a terminal; otherwise a line every few seconds, and none if it takes only seconds."""
    how: dict[str, Any] = {"total": total, "initial": done, "desc": desc, "unit": unit}
    if not sys.stderr.isatty():
        how |= {"file": Log(), "mininterval": EVERY, "delay": EVERY, "ascii": True}
    return tqdm(**how)


class Log(io.TextIOBase):
    """stderr for a progress bar that prints each update on a new line."""

    def write(self, text: str) -> int:
        return sys.stderr.write(f"{text.strip()}\n" if text.strip() else "")

    def flush(self) -> None:
        sys.stderr.flush()
