"""The paper's baseline without a prompt: a ResNet-50 for scores or heat maps (arXiv 2312.10240, section 5)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.build import node
from src.data.batch import HEAT_MAPS, SCORES, Batch
from src.models.augmentation import augmented
from src.models.layers import ImageEncoder, ImageEncoderSettings, resize
from src.models.rahf.feedback import FeedbackSystem, Prediction
from src.models.rahf.heads import HeatMapHead


class RegressorNet(nn.Module):
    """Logits of the heat maps (batch, 2, h, w) and scores (batch, 4) of images; None for what it does not predict."""

    def __init__(self, predicts: Sequence[str], encoder: ImageEncoderSettings, width: int, deconvs: Sequence[int]):
        super().__init__()
        self.encoder = ImageEncoder(encoder, width)
        self.scores = nn.Linear(width, len(SCORES)) if "scores" in predicts else None
        self.maps = HeatMapHead(width, (), deconvs, len(HEAT_MAPS)) if "heatmaps" in predicts else None

    def forward(self, images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (tokens,) = self.encoder([images])  # (batch, grid * grid, width)
        grid = self.encoder.grid
        maps = self.maps(tokens.transpose(1, 2).unflatten(2, (grid, grid))) if self.maps else None
        return maps, self.scores(tokens.mean(dim=1)) if self.scores else None


class Regressor(FeedbackSystem):
    """Predicts scores, heatmaps or both from the image alone.

    Args:
        predicts: of scores and heatmaps; the paper trains one network for each.
        image_encoder: its feature map is averaged for the scores, and upsampled for the heat maps.
        width: of the features; deconvs: widths of the heat maps' deconvolutions, each of which doubles their side.
        lr, weight_decay: of AdamW; warmup: share of the steps until the peak.
        flip, colour: see `augmented`.
    """

    monitor = ("val/mean", "max")
    card: ClassVar = {
        "use": "Comparison with RAHF.",
        "limits": "It does not read the prompt, so that it cannot know what is misaligned.",
    }

    def __init__(
        self,
        image_encoder: ImageEncoderSettings,
        predicts: Sequence[str] = ("scores",),
        width: int = 256,
        deconvs: Sequence[int] = (256, 256, 256, 128),
        lr: float = 1e-4,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        flip: float = 0.5,
        colour: float = 0.0,
    ) -> None:
        self.predicts = frozenset(predicts)
        if not self.predicts or self.predicts - {"scores", "heatmaps"}:
            raise ValueError(f"predicts={list(predicts)}: choose from scores, heatmaps.")
        super().__init__()
        self.net = RegressorNet(predicts, image_encoder, width, deconvs)
        self.image_encoder = image_encoder
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.flip, self.colour = flip, colour

    def training_step(self, batch: Batch) -> Tensor:
        batch = augmented(batch, self.flip, self.colour)
        maps, scores = self.net(batch["image"])
        losses = {}
        if maps is not None:
            losses["heatmaps"] = F.mse_loss(maps.float().sigmoid(), resize(batch["heatmaps"], maps.shape[-2:]))
        if scores is not None:
            losses["scores"] = F.mse_loss(scores.float().sigmoid(), batch["scores"])
        total = torch.stack(list(losses.values())).sum()
        self.log("train/loss", total, prog_bar=True, batch_size=len(batch["image"]))
        return total

    def predict(self, batch: Batch) -> Prediction:
        maps, scores = self.net(batch["image"])
        return Prediction(*(None if logits is None else logits.float().sigmoid() for logits in (maps, scores)))

    def assets(self, folder: Path) -> dict[str, Any]:
        return {"image_encoder": node(self.image_encoder.saved())}
