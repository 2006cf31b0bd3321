"""RAHF as a reward: a weighted sum of its scores and of minus its mean heat maps (CVPR 2024, arXiv 2312.10240)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from src.data.batch import HEAT_MAPS, SCORES, Batch
from src.models.rahf.system import RAHFSystem
from src.rewards.base import Reward, Score
from src.runtime.checkpoint import load


class RAHFReward(Reward):
    """Higher is better. Parts: the four scores in [0, 1] and the means of the two heat maps in [0, 1].

    weights: by name of a score or heat map; a heat map's mean counts negatively. Those that are not named count 0.
    threshold: from which `src.generate` accepts an image. 0.5 is the middle of the raters' scale for a single score;
    other weights need another one.
    """

    fields = frozenset({"prompt"})
    heat_maps = HEAT_MAPS

    def __init__(
        self,
        checkpoint: str | Path = "checkpoints/rahf",
        weights: Mapping[str, float] | None = None,
        threshold: float | None = 0.5,
    ) -> None:
        super().__init__()
        self.rahf, self.weights = load(checkpoint, RAHFSystem), dict(weights or {"plausibility": 1.0})
        if unknown := sorted(self.weights.keys() - {*SCORES, *HEAT_MAPS}):
            raise ValueError(f"weights: no {unknown[0]}; choose from {', '.join((*SCORES, *HEAT_MAPS))}.")
        self.highest = sum(max(w, 0.0) if name in SCORES else max(-w, 0.0) for name, w in self.weights.items())
        self.threshold = threshold
        self.freeze()

    def score(self, images: Tensor, batch: Batch) -> Score:
        maps, scores = self.rahf.assess(images, batch["prompt"])
        means = {name: values.mean(dim=(1, 2)) for name, values in maps.items()}
        signed = scores | {name: -mean for name, mean in means.items()}
        value = torch.stack([weight * signed[name] for name, weight in self.weights.items()]).sum(dim=0)
        return Score(value, scores | means, maps)
