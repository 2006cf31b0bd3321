"""The RAHF paper's baselines on CLIP: off the shelf, tuned, and gradient maps (arXiv 2312.10240, section 5)."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from open_clip.factory import get_model_config
from torch import Tensor, nn

from src.build import node
from src.data.batch import SCORES, Batch
from src.models.augmentation import augmented
from src.models.rahf.feedback import FeedbackSystem, Prediction
from src.models.rahf.gradient_map import feature_layer, misalignment_map
from src.rewards.clip_net import Clip, ClipSettings, distinct

FOLDER = "clip"  # of the CLIP's configuration in a checkpoint folder


class ClipHeads(nn.Module):
    """Logits (batch, 4), in the order of SCORES, of images (batch, 3, height, width) in [0, 1] under their prompts.

    Each score has a head, linear layers of `hidden` widths with ReLU, on the CLIP's features of image and prompt and
    their elementwise product, the sum of which is the cosine; all are scaled to a mean square of about 1.
    """

    def __init__(self, clip: Clip, hidden: Sequence[int]) -> None:
        super().__init__()
        self.clip = clip
        config: Any = get_model_config(clip.name)
        widths = [3 * config["embed_dim"], *hidden]
        self.heads = nn.ModuleList(
            nn.Sequential(
                *(nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in pairwise(widths)), nn.Linear(widths[-1], 1)
            )
            for _ in SCORES
        )
        for name, weight in clip.net.named_parameters():
            if name in ("logit_scale", "logit_bias"):  # no head reads them
                weight.requires_grad_(False)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        different, place = distinct(prompts)
        x, y = self.clip.image_features(images), self.clip.text_features(different)[place]
        x, y = x * x.shape[1] ** 0.5, y * y.shape[1] ** 0.5
        features = torch.cat([x, y, x * y], dim=1)
        return torch.cat([head(features) for head in self.heads], dim=1)


class ClipFeedback(FeedbackSystem):
    """Predicts scores, the heat map of misalignment or both by a CLIP.

    Off the shelf, the cosine of image and prompt stands for each of the four scores; it is not calibrated, so that only
    correlations are meaningful. Tuned, the scores are those of `ClipHeads`, trained together with the CLIP by the mean
    squared error. The heat map is always `misalignment_map`, which is not trained.

    Args:
        backbone: see `ClipSettings`. Heat maps need resize="squash", with which the CLIP sees the whole image.
        predicts: of scores and heatmaps.
        tuned: train the CLIP and heads for the scores; otherwise nothing is trained.
        hidden: widths of the heads' hidden layers.
        lr, weight_decay: of AdamW; warmup: share of the steps until the peak.
        flip, colour, crop: see `augmented`.

    Raises ValueError for other `predicts`, heat maps of a part of the image, or of a network without a feature map.
    """

    maps = ("misalignment",)
    monitor = ("val/mean", "max")
    card: ClassVar = {
        "use": "Comparison with RAHF.",
        "limits": "It has features of the whole image only, and does not find implausible regions or misaligned words.",
    }

    def __init__(
        self,
        backbone: ClipSettings,
        predicts: Sequence[str] = ("scores",),
        tuned: bool = True,
        hidden: Sequence[int] = (512,),
        lr: float = 1e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        flip: float = 0.0,
        colour: float = 0.0,
        crop: float = 0.0,
    ) -> None:
        self.predicts = frozenset(predicts)
        if not self.predicts or self.predicts - {"scores", "heatmaps"}:
            raise ValueError(f"predicts={list(predicts)}: choose from scores, heatmaps.")
        if tuned and "scores" not in self.predicts:
            raise ValueError(f"predicts={list(predicts)}: with tuned=true, scores are learnt; set tuned=false.")
        super().__init__()
        clip = Clip(backbone)
        if "heatmaps" in self.predicts:
            feature_layer(clip)
            if clip.resize != "squash":
                raise ValueError(f"backbone.resize={clip.resize}: heat maps of the whole image need squash.")
        self.backbone, self.tuned = backbone, tuned
        self.net = ClipHeads(clip, hidden) if tuned else clip
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.flip, self.colour, self.crop = flip, colour, crop

    @property
    def clip(self) -> Clip:
        return self.net.clip if self.tuned else self.net

    def configure_optimizers(self) -> Any:
        if not self.tuned:
            raise ValueError("tuned=false: nothing is trained; `python -m src.evaluate baseline=clip` measures it.")
        return super().configure_optimizers()

    def training_step(self, batch: Batch) -> Tensor:
        batch = augmented(batch, self.flip, self.colour, self.crop)
        loss = F.mse_loss(self.net(batch["image"], batch["prompt"]).float().sigmoid(), batch["scores"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["image"]))
        return loss

    def predict(self, batch: Batch) -> Prediction:
        images, prompts = batch["image"], batch["prompt"]
        maps = misalignment_map(self.clip, images, prompts)[:, None] if "heatmaps" in self.predicts else None
        scores = self._scores(images, prompts) if "scores" in self.predicts else None
        return Prediction(maps, scores)

    def _scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        found = self.net(images, prompts).float()
        return found.sigmoid() if self.tuned else found[:, None].expand(-1, len(SCORES))

    def assets(self, folder: Path) -> dict[str, Any]:
        """Writes configuration and tokenizer of the CLIP to folder/clip."""
        (folder / FOLDER).mkdir(exist_ok=True)
        self.clip.save_config(folder / FOLDER)
        return {"backbone": node(replace(self.backbone, name=f"./{FOLDER}", weights=None, resize=None))}
