"""Resuming: a killed and resumed run ends with the same weights as an uninterrupted one.

States are saved between steps and written atomically; random numbers depend on the step only. The order of the data is
restored by `src.data.samplers.TrainBatches`.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from src.runtime.files import atomic

# May change when a run resumes, because the result does not depend on them.
FREE = ("data.num_workers", "data.source.cache", "data.cache", "data.root", "data.quarantine", "data.verify")
# Arguments of the trainer that must not change, because they determine the batches of a step, the step itself, or the
# length of the run and thus the learning rate.
KEPT = ("precision", "accumulate_grad_batches", "limit_train_batches", "gradient_clip_val", "max_steps", "max_epochs")


def open_run(out: Path, config: dict[str, Any]) -> Path | None:
    """The state to resume from, or None for a new run; writes `out/config.yaml`."""
    file, last = out / "config.yaml", out / "last.ckpt"
    if rank_zero_only.rank == 0:
        trained = out.is_dir() and bool({entry.name for entry in out.iterdir()} - {file.name, "logs", ".lock"})
        if not config["resume"] and trained:
            raise ValueError(f"{out} is not empty; resume=true continues the run in it, out=FOLDER starts another.")
        if file.is_file():
            try:
                old = OmegaConf.to_container(OmegaConf.load(file))
            except (OmegaConfBaseException, YAMLError, UnicodeDecodeError):
                old = None
            if not isinstance(old, dict) or not old.keys() >= {"model", "data", "trainer"}:
                raise ValueError(f"{file} is not the configuration of a run; choose another out=FOLDER.")
            changed = differences(same_run(old), same_run(config))
            if changed and (trained or config["resume"]):
                raise ValueError(
                    f"{out} contains a run with other settings ({changed}); use those settings, or another out=FOLDER."
                )
        elif trained:
            raise ValueError(f"{out} has no config.yaml, so its settings are unknown; choose another out=FOLDER.")
        with atomic(file) as part:
            part.write_text(OmegaConf.to_yaml(OmegaConf.create(config)), encoding="utf-8")
    return last if config["resume"] and last.is_file() else None


def flat(config: Mapping, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and values of a configuration, without keys that may change."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {} if name in FREE else {name: value}
    return found


def same_run(config: Any) -> dict[str, Any]:
    """Dotted keys and values that must not change when a run resumes."""
    kept = {f"trainer.{name}" for name in KEPT}
    parts = ("model.", "data.", "seed")
    return {name: value for name, value in flat(config).items() if name in kept or name.startswith(parts)}


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The keys whose values differ, with both values; empty if there are none."""
    names = sorted(old.keys() | new.keys())
    return ", ".join(f"{k} ({old.get(k)} -> {new.get(k)})" for k in names if old.get(k) != new.get(k))


def batches_trained(trainer: L.Trainer) -> int:
    """The number of training batches so far in this process, over all epochs, including before resuming."""
    total: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    return total.processed


class LastCheckpoint(Callback):
    """Keeps `path` the state of a recent step: every `every` optimizer steps, and at the end of training.

    A non-finite state is never saved: it stops the run with a ValueError and keeps the last good state. `data` is the
    fingerprint of the data set; a state of other data is not resumed.
    It saves when the next batch is about to start: then everything that belongs to the step before (schedulers,
    validation, the best checkpoint) is done, so nothing is skipped or done twice on resuming.
    """

    def __init__(self, path: Path, every: int, data: str = ""):
        if every < 1:
            raise ValueError(f"checkpoint_every={every} must be at least 1.")
        self.path, self.every, self.data = path, every, data
        self.saved = -1  # the optimizer step of the file; the first is step 0, so that a full disk is noticed at once
        self.seconds = 0.0  # spent training up to the file
        self._since = time.monotonic()
        self._logged: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._since = time.monotonic()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        loop = trainer.fit_loop.epoch_loop
        if self._logged is not None:  # the first batch after resuming: Lightning has counted it twice
            loop.batch_progress.total.ready = loop.batch_progress.total.completed + 1
            loop._batches_that_stepped, self._logged = self._logged, None  # private: setup.cfg pins lightning<2.7
        step = trainer.global_step
        between_steps = batch_idx % trainer.accumulate_grad_batches == 0
        if between_steps and step != self.saved and step % self.every == 0:
            self._save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        """Raises ValueError for a non-finite state: an update may overflow although its gradient is finite."""
        for name, value in trainer.lightning_module.state_dict().items():
            if not value.isfinite().all():
                kept = f"{self.path} keeps step {self.saved}" if self.path.exists() else "no earlier state was saved"
                raise ValueError(
                    f"step {trainer.global_step}: {name} is NaN or infinite; {kept}. Use a lower model.lr."
                )
        self.saved = trainer.global_step
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["steps_logged"] = trainer.fit_loop.epoch_loop._batches_that_stepped
        checkpoint["world_size"], checkpoint["data"] = trainer.world_size, self.data

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if (processes := checkpoint.get("world_size", trainer.world_size)) != trainer.world_size:
            raise ValueError(
                f"{self.path} was trained by {processes} processes, these are {trainer.world_size}: batches would be "
                f"seen twice or never. Resume with trainer.devices={processes}."
            )
        if checkpoint.get("data", self.data) != self.data:
            raise ValueError(
                f"{self.path} was trained on other records: the contents of the data set have changed. Restore them, "
                "or start again in another out=FOLDER."
            )
        self._logged = checkpoint.get("steps_logged")

    def state_dict(self) -> dict[str, Any]:
        return {"saved": self.saved, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved, self.seconds = state_dict["saved"], state_dict["seconds"]


class StepSeed(Callback):
    """Seeds torch on all devices with (seed, batch, rank) before every training batch.

    Batches are counted over all epochs, so accumulated batches have different seeds.
    """

    def __init__(self, seed: int):
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        words = [self.seed, batches_trained(trainer), trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))


class AtomicIO(TorchCheckpointIO):
    """Writes Lightning's checkpoint files atomically.

    Lightning writes to the temporary folder first; moving the file to another disk is a copy, which can be interrupted.
    """

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Raises ValueError for a file that cannot be read."""
        try:
            return super().load_checkpoint(path, *args, **kwargs)
        except Exception as error:  # torch.load raises many kinds of errors
            raise ValueError(
                f"{path} is damaged or not a training state ({str(error).splitlines()[0]}); restore it from a copy, "
                "or start again in another out=FOLDER."
            ) from None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        with atomic(Path(path)) as part:
            torch.save(checkpoint, part)
