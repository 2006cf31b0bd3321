"""A tuner whose generator is evaluated before and after training."""

import csv
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from src.data.batch import Batch
from src.diffusion.generator import Generator
from src.figures.images import draw_images, draw_pairs
from src.models.generator.tuner import Tuner
from src.models.rfft.evaluator import Evaluator
from src.rewards.base import Reward
from src.runtime.checkpoint import fingerprint

SHOWN = 16  # products in a sheet


class EvaluatedTuner(Tuner):
    """A tuner whose generated images are measured by an evaluator and the reward, always with the same noise.

    Validation measures the current generator, the test also the generator before training (names with `before_`).

    Args:
        evaluator: measures the images generated for validation and test products; reward: its mean is logged too.
        generator, trainable, rank, ema, lr, weight_decay, warmup, schedule: see `Tuner`.
    """

    def __init__(self, generator: Generator, evaluator: Evaluator, reward: Reward, *tuner: Any) -> None:
        super().__init__(generator, *tuner)
        self.evaluator, self.reward, self.tuned = evaluator, reward, False
        self.shown: dict[str, list[tuple[Tensor, str]]] = {}  # images and prompts, by split
        self.rows: dict[str, dict[str, Any]] = {}  # measures of the test records, by key

    def base_hashes(self) -> dict[str, str]:
        return super().base_hashes() | {"reward": fingerprint(self.reward)}

    def evaluation_step(self, batch: Batch, split: str) -> None:
        self._measure(split, batch)
        if split == "test" and self.tuned:
            with self.trainable.reference():
                self._measure("test/before_", batch)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.tuned = True

    def _measure(self, split: str, batch: Batch) -> None:
        """Logs the measures of the evaluator; keeps the first images."""
        with self.trainable.low_precision():
            measures, images = self.evaluator(self.net, batch, self.reward)
        prefix = split if split.endswith("_") else f"{split}/"
        if split != "val":
            columns = {f"{prefix}{name}".removeprefix("test/"): value.tolist() for name, value in measures.items()}
            for row, key in enumerate(batch["key"]):
                told = {name: column[row] for name, column in columns.items()}
                self.rows.setdefault(key, {"prompt": batch["prompt"][row]}).update(told)
        for name, value in measures.items():
            told = ~value.isnan()  # NaN: undefined for the product; NaN from a network is an error
            self.log(
                f"{prefix}{name}", value[told].sum() / told.sum().clamp_min(1), batch_size=int(told.sum()),
                on_step=False, on_epoch=True,
            )  # fmt: skip
        shown = self.shown.setdefault(split, [])
        shown += list(zip(images[0].cpu(), batch["prompt"], strict=True))[: SHOWN - len(shown)]

    def evaluation_end(self, split: str) -> None:
        """After validation, draws `figures/step-N.png`, always with the same products, prompts and noise."""
        if split != "val" or not self.shown.get("val"):  # or this process has no row
            return
        images, prompts = zip(*self.shown.pop("val"), strict=True)
        step, folder = self.trainer.global_step, Path(self.trainer.default_root_dir) / "figures"
        if self.trainer.is_global_zero:
            draw_images(folder / f"step-{step:06}.png", torch.stack(images), prompts)
        if isinstance(self.logger, TensorBoardLogger):
            self.logger.experiment.add_images("val/images", torch.stack(images), step)

    def report(self, data: Any, folder: Path) -> list[Path]:
        """Draws `before_after.png`: the same products, prompts and noise, not selected. Writes `measures.csv`.

        It has one row per test record of this process; a cell is "nan" if the prompt names no attribute.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "measures.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["key", *next(iter(self.rows.values()))])
            writer.writeheader()
            writer.writerows({"key": key, **row} for key, row in self.rows.items())
        before, after = (torch.stack([image for image, _ in self.shown[s]]) for s in ("test/before_", "test"))
        prompts = [prompt for _, prompt in self.shown["test"]]
        return [draw_pairs(folder / "before_after.png", before, after, prompts), folder / "measures.csv"]
