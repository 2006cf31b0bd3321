"""HPS as a reward: an own checkpoint, or the published v1 (ICCV 2023), v2 (arXiv 2306.09341) and v2.1."""

from pathlib import Path

from torch import Tensor

from src.data.batch import Batch
from src.models.hps.system import HPSSystem
from src.rewards.base import Reward, Score
from src.rewards.clip_net import Clip, ClipSettings
from src.runtime.checkpoint import load
from src.runtime.weights import found

# Network and preprocessing as released: v1 crops, though it was trained on padded images; v2 does not clamp.
PUBLISHED = {
    "v1": ClipSettings("ViT-L-14-quickgelu", None, "shortest"),
    "v2": ClipSettings("ViT-H-14", None, "longest", clamp=False),
    "v2.1": ClipSettings("ViT-H-14", None, "longest", clamp=False),
}
HUB = "xswu/HPSv2"
FILES = {"v1": "hpc.pt", "v2": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}


class HPSReward(Reward):
    """100 times the cosine of image and prompt, as the papers report it; higher is better.

    Published versions are mostly between 15 and 35. Values are comparable within one prompt and one version only.

    Args:
        checkpoint: a checkpoint folder of an HPSSystem, or "v1", "v2" or "v2.1".
        weights: file of the published weights, or a folder or hub id that has it, such as hpc.pt of v1, which is on
            OneDrive only; None: v2 and v2.1 are downloaded once from the hub.
        resize: see `ClipSettings`; None: as the checkpoint, or as released; v1 was trained with "longest".
        threshold: from which `src.generate` accepts an image; none by default, as values depend on the prompt.

    Raises ValueError if there are no such weights, or they do not match.
    """

    fields = frozenset({"prompt"})
    highest = 100.0

    def __init__(
        self,
        checkpoint: str | Path = "checkpoints/hps",
        weights: str | None = None,
        resize: str | None = None,
        threshold: float | None = None,
    ) -> None:
        super().__init__()
        self.threshold = threshold
        self.clip = _published(str(checkpoint), weights) if checkpoint in PUBLISHED else _own(checkpoint, weights)
        self.clip.resize = resize or self.clip.resize
        self.freeze()

    def score(self, images: Tensor, batch: Batch) -> Score:
        return Score(100 * self.clip(images, batch["prompt"]), {})


def _own(checkpoint: str | Path, weights: str | None) -> Clip:
    if weights:
        raise ValueError(f"weights={weights} are for the published {', '.join(PUBLISHED)}, not for {checkpoint}.")
    return load(checkpoint, HPSSystem).clip


def _published(version: str, weights: str | None) -> Clip:
    if not weights and version == "v1":
        raise ValueError(f"HPS v1 needs weights=FILE: its file {FILES[version]} is on OneDrive (tgxs002/align_sd).")
    file = found(weights or HUB, (FILES[version],))
    settings = PUBLISHED[version]
    return Clip(ClipSettings(settings.name, str(file), settings.resize, settings.clamp))
