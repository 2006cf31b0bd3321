"""Learning rates that rise, then fall, over a run whose length is known."""

import math
from typing import Any

import lightning as L
import torch

SCHEDULES = ("cosine", "step", "constant")


def pace(done: float, warmup: float, schedule: str = "cosine") -> float:
    """The learning rate as a share of its peak when the share `done` of the steps is done.

    It rises linearly over the share `warmup`. Then "cosine" falls to 0; "step" stays, a tenth from the middle on;
    "constant" stays.
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
    """What `configure_optimizers` returns: AdamW on the system's trainable weights, `pace` after every step.

    Biases and norms, that is vectors, do not decay. Raises ValueError if the run has no end.
    """
    steps = system.trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise ValueError("the learning rate needs an end: set trainer.max_steps or trainer.max_epochs.")
    weights = [weight for weight in system.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    fused = "mixed" not in system.trainer.precision  # Lightning does not clip the gradients of a fused one there
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=fused)
    paced = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: pace(step / steps, warmup, schedule))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": paced, "interval": "step"}}
