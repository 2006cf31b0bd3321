"""CLIP as a reward (CLIPScore without the cut at 0; Hessel et al. 2021, arXiv 2104.08718)."""

from torch import Tensor

from src.data.batch import Batch
from src.rewards.base import Reward, Score
from src.rewards.clip_net import Clip, ClipSettings


class ClipReward(Reward):
    """100 times the cosine of image and prompt; mostly 15 to 40 with published networks. Higher is better.

    The prompt is read as it is, without "A photo depicts" before it. Arguments: see `ClipSettings`, and
    `threshold`, from which `src.generate` accepts an image; there is none by default.
    """

    fields = frozenset({"prompt"})
    highest = 100.0

    def __init__(
        self,
        name: str = "checkpoints/clip",
        weights: str | None = "checkpoints/clip",
        resize: str | None = None,
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        self.threshold = threshold
        self.clip = Clip(ClipSettings(name, weights, resize))
        self.freeze()

    def score(self, images: Tensor, batch: Batch) -> Score:
        return Score(100 * self.clip(images, batch["prompt"]), {})
