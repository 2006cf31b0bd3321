"""One optimizer step of a system, by a real trainer."""

from typing import Any, NamedTuple

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader

from src.data.batch import Batch

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    "logger": False, "num_sanity_val_steps": 0,
}  # fmt: skip


class Step(NamedTuple):
    loss: float  # what training_step gives
    gradients: dict[str, Tensor]  # that the optimizer gets, by the weight's name; of those that have one
    logged: dict[str, Tensor]


def batches(*them: Batch) -> Any:
    """A loader of ready batches."""
    return DataLoader(them, batch_size=None)  # pyright: ignore[reportArgumentType]


def one_step(system: L.LightningModule, batch: Batch, **trainer: Any) -> Step:
    """The first step of a run on `batch`."""
    losses: list[float] = []
    gradients: dict[str, Tensor] = {}

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            found = {name: weight.grad for name, weight in pl_module.named_parameters()}
            gradients.update({name: grad.clone() for name, grad in found.items() if grad is not None})

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            losses.append(float(outputs["loss"]))

    runner = L.Trainer(**QUIET | {"max_steps": 1, "limit_val_batches": 0, "callbacks": [Watch()]} | trainer)
    runner.fit(system, batches(batch))
    return Step(losses[0], gradients, {**runner.callback_metrics})
