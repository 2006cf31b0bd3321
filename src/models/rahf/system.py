"""Training of RAHF, which predicts rich human feedback on generated images.

Liang et al., "Rich Human Feedback for Text-to-Image Generation", CVPR 2024, arXiv 2312.10240.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from src.build import node
from src.data.batch import HEAT_MAPS, SCORES, Batch
from src.models.augmentation import augmented
from src.models.layers import ImageEncoderSettings, resize
from src.models.rahf.feedback import FeedbackSystem, Prediction
from src.models.rahf.net import DECODINGS, RAHF, HeadSettings, PromptModelSettings
from src.runtime.finite import require_finite

LOSSES = ("heatmaps", "scores", "words")
LEVELS = (0.01, 0.02, 0.03, 0.05, 0.07, *(n / 20 for n in range(2, 19)))  # thresholds that calibration tries
MARKED = 1 / 6  # of a heat map: half of what one of three raters adds


class RAHFSystem(FeedbackSystem):
    """RAHF: where an image is implausible or does not follow its prompt, four scores, and the misaligned words.

    Args:
        variant: "multi_head", a head for each output, or "augmented_prompt", one head for all heat maps and one for all
            scores, which the task's name before the prompt directs.
        image_encoder, prompt_model, heads: see `RAHF`.
        loss_weights: of the mean squared errors of heatmaps and scores, and of the words' cross-entropy.
        decoding: of the words, "constrained" or "free"; see `MarkedPrompts`.
        lr, weight_decay: of AdamW; warmup: share of the steps until the peak.
        flip, colour, crop: see `augmented`.
    """

    predicts = frozenset({"heatmaps", "scores", "aligned_words"})
    monitor = ("val/mean", "max")
    card: ClassVar = {
        "use": "Finding and repairing implausible regions, selecting images, and as a reward for tuning a generator.",
        "limits": "It knows the images and prompts of the data below only. Heat maps mark discs around the points that "
        "raters clicked, not the extent of a flaw.",
    }

    def __init__(
        self,
        image_encoder: ImageEncoderSettings,
        prompt_model: PromptModelSettings,
        heads: HeadSettings,
        variant: str = "multi_head",
        loss_weights: Mapping[str, float] | None = None,
        decoding: str = "constrained",
        lr: float = 2e-5,
        weight_decay: float = 2e-3,
        warmup: float = 0.1,
        flip: float = 0.0,
        colour: float = 0.0,
        crop: float = 0.0,
    ) -> None:
        super().__init__()
        if decoding not in DECODINGS:
            raise ValueError(f"decoding={decoding}: choose {' or '.join(DECODINGS)}.")
        self.loss_weights = dict.fromkeys(LOSSES, 1.0) | dict(loss_weights or {})
        if unknown := sorted(self.loss_weights.keys() - LOSSES):
            raise ValueError(f"loss_weights: there is no loss {unknown[0]}; there are {', '.join(LOSSES)}.")
        self.net = RAHF(variant, image_encoder, prompt_model, heads)
        self.image_encoder, self.prompt_model, self.decoding = image_encoder, prompt_model, decoding
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.flip, self.colour, self.crop = flip, colour, crop

    def training_step(self, batch: Batch) -> Tensor:
        batch = augmented(batch, self.flip, self.colour, self.crop)
        losses = self.losses(batch)
        total = torch.stack([self.loss_weights[name] * loss for name, loss in losses.items()]).sum()
        self.log("train/loss", total, prog_bar=True, batch_size=len(batch["image"]))
        self.log_dict({f"train/{name}": loss for name, loss in losses.items()}, batch_size=len(batch["image"]))
        return total

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The three losses, means over the batch; heat maps are compared at the heads' resolution."""
        maps, scores, fused = self.net(batch["image"], batch["prompt"])
        words = self.net.prompts.targets(batch["prompt"], batch["aligned_words"], batch["key"])
        return {
            "heatmaps": F.mse_loss(maps.float().sigmoid(), resize(batch["heatmaps"], maps.shape[-2:])),
            "scores": F.mse_loss(scores.float().sigmoid(), batch["scores"]),
            "words": self.net.words_loss(fused, words),
        }

    def predict(self, batch: Batch) -> Prediction:
        maps, scores, fused = self.net(batch["image"], batch["prompt"])
        require_finite(fused.features, "image features", batch["key"])  # before the decoder, which knows no keys
        words = self.net.misaligned(fused, batch["prompt"], self.decoding)
        return Prediction(maps.float().sigmoid(), scores.float().sigmoid(), words.to(self.device))

    @property
    def thresholds(self) -> dict[str, float]:
        """Of each heat map by name, from which a pixel counts as marked."""
        return dict(zip(HEAT_MAPS, self.net.thresholds.tolist(), strict=True))

    @torch.inference_mode()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Sets the thresholds of the heat maps with the best F1 of pixels that any rater has marked.

        A heat map in which nobody has marked anything keeps its threshold.
        """
        hits = torch.zeros(len(HEAT_MAPS), len(LEVELS), 3, dtype=torch.float64)  # true, predicted, both
        for batch in batches:
            maps = self.net(batch["image"], batch["prompt"])[0].float().sigmoid()
            marked = resize(batch["heatmaps"], maps.shape[-2:]) > MARKED
            for index, level in enumerate(LEVELS):
                chosen = maps > level
                counts = [part.sum(dim=(0, 2, 3)) for part in (marked, chosen, marked & chosen)]
                hits[:, index] += torch.stack(counts, dim=1).cpu()
        f1 = 2 * hits[..., 2] / (hits[..., 0] + hits[..., 1]).clamp_min(1)  # (maps, levels)
        best = torch.tensor(LEVELS, device=self.device)[f1.argmax(dim=1).to(self.device)]
        there = (hits[:, 0, 0] > 0).to(self.device)
        self.net.thresholds.copy_(torch.where(there, best, self.net.thresholds))

    def assess(self, images: Tensor, prompts: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Heat maps (batch, h, w) and scores (batch,) by name, in [0, 1], differentiable in the images."""
        maps, scores, _ = self.net(images, prompts)
        return (
            dict(zip(HEAT_MAPS, maps.float().sigmoid().unbind(1), strict=True)),
            dict(zip(SCORES, scores.float().sigmoid().unbind(1), strict=True)),
        )

    def assets(self, folder: Path) -> dict[str, Any]:
        """Writes tokenizer and configuration of the T5 to folder/text."""
        self.net.prompts.tokenizer.save_pretrained(folder / "text")
        self.net.t5.config.save_pretrained(folder / "text")
        return {
            "image_encoder": node(self.image_encoder.saved()),
            "prompt_model": node(replace(self.prompt_model, name="./text", options=None, pretrained=False)),
        }
