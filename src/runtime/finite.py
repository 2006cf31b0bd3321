"""Checks for NaN and infinity in outputs of networks, losses and gradients."""

import warnings
from collections.abc import Sequence
from itertools import chain
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

SHOWN = 16  # keys named in an error


def require_finite(values: Tensor, what: str, keys: Sequence[str]) -> Tensor:
    """Returns `values` (batch, ...). Raises ValueError with the keys of the rows that contain NaN or infinity."""
    finite = values.isfinite().reshape(len(values), -1).all(dim=1).tolist()
    if bad := [key for key, good in zip(keys, finite, strict=True) if not good]:
        raise ValueError(f"{what}: NaN or infinite for {len(bad)} of {len(keys)} images ({_listed(bad)}).")
    return values


class FiniteUpdates(Callback):
    """Prevents updates if a loss or gradient is NaN or infinite in any process.

    Args:
        nonfinite: "stop" raises a ValueError with step and keys, in all processes. "skip" keeps the weights and buffers
            from before the step, warns, and logs the number of skipped updates as `train/skipped_updates`.

    With precision=16-mixed only the loss is checked: the gradient scaler skips updates itself and adapts its scale.
    """

    def __init__(self, nonfinite: str = "stop"):
        if nonfinite not in ("stop", "skip"):
            raise ValueError(f"nonfinite={nonfinite}: choose stop or skip.")
        self.skip, self.skipped = nonfinite == "skip", 0
        self.keys: Sequence[str] = ()  # of the current batch
        self.batches: list[tuple[Sequence[str], Tensor]] = []  # keys and loss of the batches of the step
        self.buffers: list[Tensor] = []  # before the step, for the statistics of batch normalization

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.keys = batch["key"]
        if self.skip and not self.batches:
            self.buffers = [buffer.detach().clone() for buffer in pl_module.buffers()]

    def on_before_backward(self, trainer: L.Trainer, pl_module: Any, loss: Tensor) -> None:
        self.batches.append((self.keys, loss.detach()))

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        batches, self.batches = self.batches, []
        scaled = trainer.precision == "16-mixed"
        gradients = [w.grad for w in pl_module.parameters() if w.grad is not None and not scaled]
        values = (*(loss for _, loss in batches), torch.nn.utils.get_total_norm(gradients))
        finite = all(torch.stack([value.isfinite().to(pl_module.device) for value in values]).tolist())
        if not trainer.strategy.reduce_boolean_decision(finite):  # in all processes
            told = f"step {trainer.global_step}: {_cause(batches, trainer.world_size)}; no weight was updated"
            if not self.skip:
                raise ValueError(
                    f"{told}. The last saved state is {trainer.default_root_dir}/last.ckpt: resume=true nonfinite=skip "
                    "continues without such updates. Or use a lower model.lr in a new run."
                )
            warnings.warn(f"{told}.", stacklevel=2)
            self.skipped += 1
            optimizer.zero_grad()  # optimizers ignore weights without a gradient
            for buffer, before in zip(pl_module.buffers(), self.buffers, strict=True):
                buffer.copy_(before)
        if self.skip:
            pl_module.log("train/skipped_updates", float(self.skipped))

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]


def _cause(batches: Sequence[tuple[Sequence[str], Tensor]], world_size: int) -> str:
    """Whether the loss or the gradient is not finite, with the keys of those batches in all processes."""
    bad = [key for keys, loss in batches if not loss.isfinite() for key in keys]
    found: list[Any] = [(bad, [key for keys, _ in batches for key in keys])] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(found, found[0])
    bad, seen = (list(chain.from_iterable(lists)) for lists in zip(*found, strict=True))
    return f"the {'loss' if bad else 'gradient'} is NaN or infinite (images {_listed(bad or seen)})"


def _listed(keys: Sequence[str]) -> str:
    return f"{', '.join(keys[:SHOWN])}{f' and {len(keys) - SHOWN} more' if len(keys) > SHOWN else ''}"
