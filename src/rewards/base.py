"""The reward interface: a frozen network that scores images and is differentiable in them."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from src.data.batch import IMAGE_FIELDS, Batch
from src.rewards.pixels import Picture, pixels

RANGE = 0.05  # by which images may leave [0, 1]


@dataclass(frozen=True)
class Score:
    """The scores of a batch of images.

    value: float32 (batch,), higher is better, differentiable in the images.
    parts: float32 (batch,) each, for logs and tables.
    maps: the reward's `heat_maps`, float32 (batch, h, w) of any size, in [0, 1].
    """

    value: Tensor
    parts: dict[str, Tensor]
    maps: dict[str, Tensor] = field(default_factory=dict)


class Reward(nn.Module, ABC):
    """A trained network that scores images: its weights are frozen and it stays in eval mode.

    A subclass loads its networks, sets `fields` and `threshold`, calls `freeze()` last, and implements `score`.
    Resizing and normalization are torch operations, so that gradients reach the images. A YAML in `conf/reward/` makes
    the reward available to all commands and to the contract tests.
    """

    fields: frozenset[str]  # batch fields it needs in addition to the images
    highest: float = math.inf  # upper bound of the values
    threshold: float | None = None  # least value of an image that `src.generate` accepts; None: the user gives it
    heat_maps: tuple[str, ...] = ()  # names of the maps of where an image is good or bad, which its scores carry

    @abstractmethod
    def score(self, images: Tensor, batch: Batch) -> Score:
        """The score of float32 `images`; `batch` has all `fields`."""

    def forward(self, images: Tensor, batch: Batch) -> Score:
        """The score of RGB `images` (batch, 3, height, width) in [0, 1] of any size; float32, also under autocast.

        `batch` has the other fields: titles, products, ...; `batch["image"]` is ignored. Rows are independent.
        Raises ValueError for images far outside [0, 1], such as [0, 255] or [-1, 1], and naming a field that is missing
        or has another number of rows.
        """
        name = type(self).__name__
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"{name}: images are {images.dtype} {tuple(images.shape)}, not float (batch, 3, height, width)."
            )
        low, high = torch.stack(images.detach().aminmax()).tolist() if images.numel() else (0, 1)
        if low < -RANGE or high > 1 + RANGE:  # NaN passes, and gives a score that is not finite
            raise ValueError(f"{name}: images must be in [0, 1], these are in [{low:.3g}, {high:.3g}].")
        if missing := sorted(self.fields - batch.keys()):
            raise ValueError(
                f"{name} needs the field {', '.join(missing)}; the batch has {', '.join(sorted(batch)) or 'none'}."
            )
        for needed in sorted(self.fields):
            if len(batch[needed]) != len(images):
                raise ValueError(f"{name}: {len(batch[needed])} rows of {needed} for {len(images)} images.")
        dtype = torch.promote_types(images.dtype, torch.float32)
        score = self.score(images.to(dtype), batch)
        parts, maps = ({key: value.to(dtype) for key, value in found.items()} for found in (score.parts, score.maps))
        return Score(score.value.to(dtype), parts, maps)

    @torch.no_grad()
    def rate(self, picture: Picture, **fields: Any) -> float:
        """The value of one image: a file, a PIL image, or a tensor (3, height, width), uint8 or float in [0, 1].

        `fields` are the reward's own, such as prompt="an oak chair" or product="chair.png".
        """
        device = next((weight.device for weight in self.parameters()), None)
        batch = {
            name: pixels(value, name)[None].to(device) if name in IMAGE_FIELDS else [value]
            for name, value in fields.items()
        }
        return float(self(pixels(picture)[None].to(device), batch).value)

    def freeze(self) -> None:
        """Freezes all weights and sets eval mode."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Keeps eval mode: no dropout, no batch statistics."""
        return super().train(False)
