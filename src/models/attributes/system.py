"""A classifier of room attributes, to measure how well images follow their prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.build import node
from src.data.batch import PADDING, Batch
from src.models.layers import ImageEncoder, ImageEncoderSettings
from src.runtime.finite import require_finite
from src.runtime.system import System


def named(prompt: str, ends: Sequence[str], values: Sequence[str]) -> int:
    """The index of the longest of `values` in the clause of `prompt` (between commas) that ends with one of `ends`.

    -100 if there is none.
    """
    for clause in prompt.lower().split(","):
        words = f" {clause.strip()} "
        if any(words.endswith(f" {end} ") for end in ends):
            found = [value for value in values if f" {value} " in words]
            if found:
                return list(values).index(max(found, key=len))
    return PADDING


class AttributeNet(nn.Module):
    """Features (batch, width) of images (batch, 3, height, width) in [0, 1], and logits of each attribute."""

    def __init__(self, sizes: Mapping[str, int], encoder: ImageEncoderSettings, width: int) -> None:
        super().__init__()
        self.encoder = ImageEncoder(encoder, width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})

    def features(self, images: Tensor) -> Tensor:
        return self.encoder([images])[0].mean(dim=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}


class AttributeReader(System):
    """Classifies wall, floor, light, ... of an image, to measure whether images follow their prompts.

    Args:
        attributes: {ends, values} by name; the value in a prompt is the one of `values` in the clause that ends with
            one of `ends`.
        width: width of the image features; flip: share of rows that are flipped horizontally.
        lr, weight_decay, warmup: see `src.runtime.schedules.adamw`.
    """

    fields = frozenset({"image", "prompt"})
    targets = frozenset({"prompt"})
    monitor = ("val/accuracy", "max")
    card: ClassVar = {
        "use": "Measuring whether generated images follow their prompts; not a reward.",
        "limits": "It is trained on the words and rooms of the data below only. Some of these images contradict their "
        "prompts, so the accuracy cannot reach 1.",
    }

    def __init__(
        self,
        attributes: Mapping[str, Mapping[str, Sequence[str]]],
        image_encoder: ImageEncoderSettings,
        width: int = 128,
        flip: float = 0.5,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        warmup: float = 0.1,
    ) -> None:
        super().__init__()
        self.attributes = {name: (tuple(a["ends"]), tuple(a["values"])) for name, a in attributes.items()}
        sizes = {name: len(values) for name, (_, values) in self.attributes.items()}
        self.net, self.image_encoder = AttributeNet(sizes, image_encoder, width), image_encoder
        self.flip, self.lr, self.weight_decay, self.warmup = flip, lr, weight_decay, warmup
        self.register_buffer("counts", torch.zeros(len(self.attributes), 2, dtype=torch.long), persistent=False)

    counts: Tensor  # (attributes, 2): images that show what their prompt names, images whose prompt names a value

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits (batch, values) by attribute."""
        return self.net(images)

    def features(self, images: Tensor) -> Tensor:
        """(batch, width), of which the logits are linear functions."""
        return self.net.features(images)

    def assets(self, folder: Path) -> dict[str, Any]:
        return {"image_encoder": node(self.image_encoder.saved())}

    def labels(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Labels (batch,) by attribute; -100 if the prompt does not name the attribute."""
        return {
            name: torch.tensor([named(prompt, ends, values) for prompt in prompts], device=self.device)
            for name, (ends, values) in self.attributes.items()
        }

    def followed(self, images: Tensor, batch: Batch) -> dict[str, Tensor]:
        """1 where the image shows what its prompt names, 0 where not, -100 where nothing is named; (batch,) each.

        Reads prompt and key of `batch`. Raises ValueError with the keys of images with non-finite logits.
        """
        labels, logits = self.labels(batch["prompt"]), self(images)
        for name, values in logits.items():
            require_finite(values, f"{name} logits", batch["key"])
        return {
            name: torch.where(label < 0, label, (logits[name].argmax(dim=1) == label).long())
            for name, label in labels.items()
        }

    def training_step(self, batch: Batch) -> Tensor:
        images = batch["image"]
        swap = torch.rand(len(images), 1, 1, 1, device=images.device) < self.flip
        logits = self(torch.where(swap, images.flip(-1), images))
        loss = self.loss(logits, self.labels(batch["prompt"]))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def loss(self, logits: dict[str, Tensor], labels: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy over the attributes named in the batch; 0 if there are none."""
        known = [name for name, label in labels.items() if (label >= 0).any()]
        losses = [F.cross_entropy(logits[name], labels[name], ignore_index=PADDING) for name in known]
        return torch.stack(losses or [0 * logit.sum() for logit in logits.values()]).mean()

    def evaluation_step(self, batch: Batch, split: str) -> None:
        hits = torch.stack(list(self.followed(batch["image"], batch).values()))
        self.counts += torch.stack([(hits == 1).sum(dim=1), (hits >= 0).sum(dim=1)], dim=1)

    def evaluation_end(self, split: str) -> None:
        """Logs the share of correct images of each attribute and the mean of the shares, over all processes."""
        counts = self.all_gather(self.counts).reshape(-1, *self.counts.shape).sum(dim=0)  # pyright: ignore
        shares = {name: hit / named for name, (hit, named) in zip(self.attributes, counts, strict=True) if named}
        self.counts.zero_()
        if not shares:
            raise ValueError(f"no prompt of the {split} split names one of {', '.join(self.attributes)}.")
        shares["accuracy"] = torch.stack(list(shares.values())).mean()
        self.log_dict({f"{split}/{name}": share for name, share in shares.items()})
