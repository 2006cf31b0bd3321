"""Training of a CLIP on images and their prompts, and what all systems on a CLIP share."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.build import node
from src.data.batch import Batch
from src.data.splits import stamp
from src.metrics.retrieval import Retrieval
from src.models.augmentation import augmented
from src.rewards.clip_net import Clip, ClipSettings, distinct
from src.runtime.finite import require_finite
from src.runtime.system import System

MAX_SCALE = 100.0  # of cosines in logits (Radford et al., section 2.5)


class OnClip(System):
    """A system whose net is a CLIP of open_clip; its checkpoint folder is also one in the layout of open_clip."""

    def __init__(self, backbone: ClipSettings) -> None:
        super().__init__()
        self.backbone, self.clip = backbone, Clip(backbone)

    @property
    def net(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.clip.net

    def features(self, images: Tensor) -> Tensor:
        """Unit vectors (batch, width) of images (batch, 3, height, width) in [0, 1]."""
        return self.clip.image_features(images)

    @torch.no_grad()
    def on_train_batch_end(self, *_: Any) -> None:
        self.net.logit_scale.clamp_(0, math.log(MAX_SCALE))

    def assets(self, folder: Path) -> dict[str, Any]:
        """Writes configuration and tokenizer of the CLIP."""
        self.clip.save_config(folder)
        return {"backbone": node(replace(self.backbone, name="./", weights=None, resize=None))}


class ClipSystem(OnClip):
    """A CLIP: how well an image matches its prompt, learnt from pairs by contrast.

    Metric: the share of images that find their own prompt among all prompts of a split, as the best or in the best 10.

    Args:
        backbone: see `ClipSettings`.
        lr, weight_decay: of AdamW; warmup: share of the steps until the peak.
        flip, colour, crop: see `augmented`.
    """

    fields = frozenset({"image", "prompt"})
    targets = frozenset({"prompt"})
    monitor = ("val/retrieval_at_10", "max")
    card: ClassVar = {
        "use": "The backbone of HPS, and a baseline of preference models.",
        "limits": "It knows the images and words of the data below only, and judges the match of image and prompt, not "
        "quality.",
    }

    def __init__(
        self,
        backbone: ClipSettings,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        warmup: float = 0.1,
        flip: float = 0.0,
        colour: float = 0.0,
        crop: float = 0.0,
    ) -> None:
        super().__init__(backbone)
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.flip, self.colour, self.crop = flip, colour, crop
        self.retrieval = nn.ModuleDict({split: Retrieval() for split in ("val", "test")})

    def training_step(self, batch: Batch) -> Tensor:
        batch = augmented(batch, self.flip, self.colour, self.crop)
        prompts, place = distinct(batch["prompt"])
        images, texts = self.clip.image_features(batch["image"]), self.clip.text_features(prompts)
        loss = contrastive_loss(self.clip.scale * images @ texts.T, torch.tensor(place, device=self.device))
        self.log_dict({"train/loss": loss, "train/scale": self.clip.scale}, prog_bar=True, batch_size=len(place))
        return loss

    def evaluation_step(self, batch: Batch, split: str) -> None:
        metric: Any = self.retrieval[split]
        prompts, place = distinct(batch["prompt"])
        images = require_finite(self.clip.image_features(batch["image"]), "image features", batch["key"])
        numbers = torch.tensor([stamp(prompt.encode()) >> 1 for prompt in batch["prompt"]], device=self.device)
        metric.update(images, self.clip.text_features(prompts)[place], numbers)

    def evaluation_end(self, split: str) -> None:
        metric: Any = self.retrieval[split]
        self.log_dict({f"{split}/{name}": value for name, value in metric.compute().items()})
        metric.reset()


def contrastive_loss(logits: Tensor, place: Tensor) -> Tensor:
    """The mean of two cross-entropies: of each image's prompt among all, and of each prompt's image among all.

    logits: (images, prompts), of different prompts; place: (images,), the prompt of each image. Images of one prompt
    are not negatives of each other.
    """
    of_image = F.cross_entropy(logits, place)
    of_prompt = logits.T[place]  # (images, images): each image's prompt with all images
    others = (place[:, None] == place) & ~torch.eye(len(place), dtype=torch.bool, device=place.device)
    own = torch.arange(len(place), device=place.device)
    return (of_image + F.cross_entropy(of_prompt.masked_fill(others, -torch.inf), own)) / 2
