"""PickScore: which image of a prompt people pick (Kirstain et al. 2023, arXiv 2305.01569)."""

from torch import Tensor

from src.data.batch import Batch
from src.rewards.base import Reward, Score
from src.rewards.clip_net import Clip, ClipSettings


class PickScore(Reward):
    """exp(logit_scale) times the cosine of image and prompt, as published; mostly 15 to 25. Higher is better.

    A CLIP ViT-H/14. Images: shorter side to 224 px, bicubic, center crop. Prompts: 77 tokens. The probability that the
    first of two images is picked is the sigmoid of the difference; only values of one prompt are comparable.

    Args:
        weights: a hub id, folder or file, in the layout of transformers (as published) or open_clip.
        name: the network, as in `ClipSettings`.
        threshold: from which `src.generate` accepts an image; none by default, as values depend on the prompt.

    Raises ValueError if there are no such weights, or they do not match.
    """

    fields = frozenset({"prompt"})

    def __init__(
        self, weights: str = "yuvalkirstain/PickScore_v1", name: str = "ViT-H-14", threshold: float | None = None
    ) -> None:
        super().__init__()
        self.threshold = threshold
        self.clip = Clip(ClipSettings(name, weights, "shortest"))
        self.freeze()
        self.highest = float(self.clip.scale)

    def score(self, images: Tensor, batch: Batch) -> Score:
        return Score(self.clip.scale * self.clip(images, batch["prompt"]), {})
