"""Training of HPS, a CLIP that learns from people's choices among images of one prompt.

Wu et al., "Human Preference Score: Better Aligning Text-to-Image Models with Human Preference", ICCV 2023, arXiv
2303.14420.
"""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from src.data.batch import SCORES, Batch
from src.metrics.preference import tuned_threshold
from src.models.augmentation import augmented
from src.models.clip.system import OnClip
from src.models.hps.freezing import freeze_first, keep_frozen_in_eval_mode
from src.models.hps.judges import BASELINES, Judge, comparison, preferred
from src.models.hps.loss import GroupLoss, group_loss
from src.rewards.clip_net import Clip, ClipSettings
from src.runtime.finite import require_finite

STUCK = 0.99  # of the loss of equal values; the median tolerates a bad start


class HPSSystem(OnClip):
    """HPS: which of several images of one prompt people prefer, by a CLIP tuned on their choices.

    A group's choice is the softmax of exp(logit_scale) * cos(image, prompt) over its images. The loss is `group_loss`;
    if it stays at that of equal values, log n, a warning is printed.

    Metrics of the choices: `PreferenceMetrics` of HPS, on test splits also of the baselines CLIP and, if the data has
    `scores`, of rated aesthetics and overall quality.

    Args:
        backbone: the CLIP to begin with; see `ClipSettings`.
        baseline: the CLIP to compare with on test splits; None: no comparison.
        image_layers, text_layers: how many of the last layers of a tower are tuned; see `freeze_first`. None: all.
        lr, weight_decay: of AdamW; warmup: share of the steps until the peak.
        flip, colour, crop: see `augmented`.
        patience: number of batches over which a loss of log n is warned of.
        tie_threshold: see `Judge`; set by `calibrate` on the pairs of the validation split.
    """

    fields = frozenset({"image", "prompt", "group"})
    targets = frozenset({"chosen"})
    optional = frozenset({"weight", "rank", "scores"})
    monitor = ("val/loss", "min")
    card: ClassVar = {
        "use": "Ranking images of one prompt, and as a reward for tuning a generator.",
        "limits": "It knows the images, words and choices of the data below only. Scores of different prompts are not "
        "comparable, nor are those of different versions.",
    }

    def __init__(
        self,
        backbone: ClipSettings,
        baseline: ClipSettings | None = None,
        image_layers: int | None = None,
        text_layers: int | None = None,
        lr: float = 1e-4,
        weight_decay: float = 0.1,
        warmup: float = 0.1,
        flip: float = 0.0,
        colour: float = 0.0,
        crop: float = 0.0,
        patience: int = 300,
        tie_threshold: float = 0.0,
    ) -> None:
        super().__init__(backbone)
        freeze_first(self.net, image_layers, text_layers)
        keep_frozen_in_eval_mode(self.net)  # Lightning trains in the modes that it finds
        self.baseline, self.tie_threshold, self.patience = baseline, tie_threshold, patience
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.flip, self.colour, self.crop = flip, colour, crop
        self.judges = nn.ModuleDict(
            {split: nn.ModuleDict({name: Judge() for name in ("hps", *BASELINES)}) for split in ("val", "test")}
        )
        self._start: list[Clip] = []  # the baseline once it is needed, in a list: no part of this module
        self._recent: list[Tensor] = []  # losses of training batches and of equal values

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        keep_frozen_in_eval_mode(self.net)
        return self

    def logits(self, batch: Batch) -> Tensor:
        """exp(logit_scale) * cos(image, prompt), float32 (batch,)."""
        return self.clip.scale * self.clip(batch["image"], batch["prompt"])

    def loss(self, logits: Tensor, batch: Batch) -> GroupLoss:
        return group_loss(logits, batch["group"], batch["chosen"], batch.get("weight"))

    def training_step(self, batch: Batch) -> Tensor:
        batch = augmented(batch, self.flip, self.colour, self.crop)
        loss, chance = self.loss(self.logits(batch), batch)
        self._watch(torch.stack([loss.detach(), chance]))
        named = {"train/loss": loss, "train/chance": chance, "train/scale": self.clip.scale}
        self.log_dict(named, prog_bar=True, batch_size=len(batch["group"]))
        return loss

    def _watch(self, losses: Tensor) -> None:
        self._recent.append(losses)
        if len(self._recent) < self.patience:
            return
        losses = torch.stack(self._recent)
        self._recent.clear()
        ratio, chance = (losses[:, 0] / losses[:, 1]).nanmedian().item(), losses[:, 1].mean().item()
        if ratio >= STUCK:
            warnings.warn(
                f"step {self.global_step}: the median loss of the last {self.patience} batches is {ratio:.3f} of that "
                f"of equal values, {chance:.4f} (log n): nothing is learnt. Try another model.lr, more layers or "
                "another backbone, and check that images and chosen belong together.",
                stacklevel=2,
            )

    def evaluation_step(self, batch: Batch, split: str) -> None:
        values = {"hps": require_finite(self.logits(batch), "HPS", batch["key"])}
        if split == "test":
            values |= self._baselines(batch)
        for name, value in values.items():
            self.judges[split][name].update(value, batch["group"], preferred(batch))  # pyright: ignore
        found = self.loss(values["hps"], batch)._asdict()
        self.log_dict({f"{split}/{name}": value for name, value in found.items()}, batch_size=len(batch["group"]))

    def _baselines(self, batch: Batch) -> dict[str, Tensor]:
        values = dict(zip(SCORES, batch["scores"].T, strict=True)) if "scores" in batch else {}
        values = {name: value for name, value in values.items() if name in BASELINES}
        if self.baseline and not self._start:
            try:
                with torch.random.fork_rng(devices=[]):
                    self._start.append(Clip(self.baseline).to(self.device).eval())
            except ValueError as error:  # a checkpoint folder was moved without it
                warnings.warn(f"no comparison with CLIP: {error}", stacklevel=2)
                self.baseline = None
        for clip in self._start:
            values["clip"] = clip.to(self.device)(batch["image"], batch["prompt"])
        return values

    def evaluation_end(self, split: str) -> None:
        for name, judge in self.judges[split].items():  # pyright: ignore[reportCallIssue]
            if not judge.update_called:
                continue
            own = name == "hps"
            judge.threshold = self.tie_threshold if own else None
            found = {key: value.float().to(self.device) for key, value in judge.compute().items()}
            judge.reset()
            kept = {key: v for key, v in found.items() if own or not key.startswith(("random_", "num_"))}
            self.log_dict({f"{split}/{'' if own else f'{name}_'}{key}": value for key, value in kept.items()})

    @torch.inference_mode()
    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Sets the threshold of ties that is best on the groups of two images."""
        judge = Judge().to(self.device)
        for batch in batches:
            judge.update(self.logits(batch), batch["group"], preferred(batch))
        if len((rows := judge.pairs())[0]):
            self.tie_threshold, _ = tuned_threshold(*rows)

    def tables(self, measured: Mapping[str, Mapping[str, float]]) -> str:
        plain = {
            folder: {name.partition("/")[2]: value for name, value in metrics.items()}
            for folder, metrics in measured.items()
        }
        return comparison(plain)

    def assets(self, folder: Path) -> dict[str, Any]:
        return {**super().assets(folder), "tie_threshold": self.tie_threshold}
