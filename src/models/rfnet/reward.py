"""RFNet as a reward: log p(available) of an ad image (Du et al., ECCV 2024, arXiv 2408.00418, F_AC)."""

from pathlib import Path

import torch
from torch import Tensor, nn

from src.data.batch import Batch
from src.models.perception.system import load_perception
from src.models.rfnet.system import RFNetSystem
from src.rewards.base import Reward, Score
from src.runtime.checkpoint import load

MAPS = ("computed", "detached", "batch")


class RFNetReward(Reward):
    """log p(available), in (-inf, 0]; its negative mean is F_AC in the paper. Parts: log-probabilities of all classes.

    `checkpoint`: folder of an RFNet. `depth`, `saliency`: see `load_perception`; unused maps are skipped.
    `maps`: where the maps of the scored image come from, which the paper does not specify. "computed": from the image,
    with gradient; "detached": from the image, without gradient through the maps; "batch": from the batch.
    `threshold`: from which `src.generate` accepts an image; -0.69 is p(available) = 0.5.
    """

    highest = 0.0

    def __init__(
        self,
        checkpoint: str | Path = "checkpoints/rfnet-reward",
        depth: str | Path = "checkpoints/depth",
        saliency: str | Path = "checkpoints/saliency",
        maps: str = "computed",
        threshold: float | None = -0.69,
    ) -> None:
        super().__init__()
        if maps not in MAPS:
            raise ValueError(f"maps={maps}: choose one of {', '.join(MAPS)}.")
        self.maps, self.threshold = maps, threshold
        system = load(checkpoint, RFNetSystem)
        if "available" not in system.classes:
            raise ValueError(f"{checkpoint}: no class 'available' among {', '.join(system.classes)}.")
        self.rfnet = system
        needed = system.fields - {"image", "label"}
        folders = {"depth": depth, "saliency": saliency} if maps != "batch" else {}
        self.perception = nn.ModuleDict(
            {field: load_perception(folder, field) for field, folder in folders.items() if field in needed}
        )
        self.fields = frozenset(needed - self.perception.keys())
        self.freeze()

    def score(self, images: Tensor, batch: Batch) -> Score:
        fields = {field: batch[field] for field in self.fields}
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.maps == "computed"):
            fields |= {field: net(images) for field, net in self.perception.items()}
        log_probabilities = self.rfnet.log_probabilities({**fields, "image": images})  # (batch, classes)
        parts = dict(zip(self.rfnet.classes, log_probabilities.unbind(dim=1), strict=True))
        return Score(parts["available"], parts)
