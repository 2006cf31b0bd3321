"""The LAION aesthetic predictor V2 (Schuhmann 2022, github.com/christophschuhmann/improved-aesthetic-predictor)."""

from torch import Tensor

from src.data.batch import Batch
from src.rewards.base import Reward, Score
from src.rewards.clip_net import Clip, ClipSettings
from src.rewards.head import LinearHead
from src.runtime.weights import fill_all, found, state_dict

FILES = ("sac+logos+ava1-l14-linearMSE.pth", "aesthetic-model.pth", "model.safetensors")


class Aesthetic(Reward):
    """The rating that people would give an image, about 1 to 10, mostly 4 to 7. Higher is better; it reads no prompt.

    OpenAI's CLIP ViT-L/14, whose image features, scaled to length 1, go through a linear head. Images: shorter side to
    224 px, bicubic, center crop.

    Args:
        head: the file sac+logos+ava1-l14-linearMSE.pth of the authors, or a folder or hub id that has it.
        name, weights: the CLIP, as in `ClipSettings`; other networks than OpenAI's ViT-L/14 need a head of their own.
        threshold: from which `src.generate` accepts an image; 5 is that of LAION-Aesthetics, the data of SD 1.5.

    Raises ValueError if there are no such weights, or they do not match.
    """

    fields = frozenset()

    def __init__(
        self,
        head: str = "trl-lib/ddpo-aesthetic-predictor",
        name: str = "ViT-L-14-quickgelu",
        weights: str | None = "openai",
        threshold: float | None = 5.0,
    ) -> None:
        super().__init__()
        self.threshold = threshold
        self.clip = Clip(ClipSettings(name, weights, "shortest"))
        self.head = LinearHead(self.clip.net.visual.output_dim)
        file = found(head, FILES)
        fill_all(self.head, state_dict(file), file)
        self.freeze()

    def score(self, images: Tensor, batch: Batch) -> Score:
        return Score(self.head(self.clip.image_features(images)), {})
