"""Optimizer and learning rate schedules with warmup."""

import math
from typing import Any

import lightning as L
import torch

SCHEDULES = ("cosine", "step", "constant")


def pace(done: float, warmup: float, schedule: str = "cosine") -> float:
    """The learning rate relative to its peak after a share `done` of the steps.

    Linear warmup over the share `warmup`, then "cosine" (to 0), "step" (a tenth after half of the steps) or "constant".
    """
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return 1.0 if done < 0.5 else 0.1
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (1 - warmup))))


def adamw(
    system: L.LightningModule, lr: float, weight_decay: float, warmup: float, schedule: str = "cosine"
) -> dict[str, Any]:
    """AdamW on the trainable weights with the schedule `pace`, for `configure_optimizers`.

    No weight decay for biases and norms (vectors). Raises ValueError if the length of the run is unknown.
    """
    steps = system.trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise ValueError("the learning rate schedule needs trainer.max_steps or trainer.max_epochs.")
    weights = [weight for weight in system.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    fused = "mixed" not in system.trainer.precision  # Lightning cannot clip gradients of fused ones
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=fused)
    paced = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: pace(step / steps, warmup, schedule))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": paced, "interval": "step"}}
