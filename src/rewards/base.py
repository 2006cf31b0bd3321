"""What every reward is: a frozen judge of pictures, differentiable in them, that any generator can be tuned with."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from src.data.batch import Batch


@dataclass(frozen=True)
class Score:
    """What a reward says of a batch of pictures.

    value: float32 (batch,), larger is better, differentiable in the pictures.
    parts: float32 (batch,) each, for logs and tables.
    """

    value: Tensor
    parts: dict[str, Tensor]


class Reward(nn.Module, ABC):
    """A trained net's opinion of pictures: its weights are frozen, and it stays in eval mode whatever `.train()` says.

    A subclass loads its nets, sets `fields`, calls `freeze()` last, and writes `score`. It resizes and normalises with
    torch operations, so that gradients reach the pictures, and names no device: buffers follow `.to()`. One YAML in
    `conf/reward/` makes it available to every command, and the contract tests find it there.
    """

    fields: frozenset[str]  # batch fields it needs besides the pictures it is given

    @abstractmethod
    def score(self, images: Tensor, batch: Batch) -> Score:
        """The opinion of float32 `images`; `batch` is known to have every field of `fields`."""

    def forward(self, images: Tensor, batch: Batch) -> Score:
        """The score of RGB `images` (batch, 3, height, width) in [0, 1], any size; float32 also under autocast.

        `batch` has what belongs to them: titles, products, ...; `batch["image"]`, if there, is not looked at. Rows do
        not influence one another. Raises ValueError naming a field that `batch` lacks or that has other rows.
        """
        name = type(self).__name__
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(
                f"{name}: images are {images.dtype} {tuple(images.shape)}, not float (batch, 3, height, width)."
            )
        if missing := sorted(self.fields - batch.keys()):
            raise ValueError(
                f"{name} needs the field {', '.join(missing)}; the batch has {', '.join(sorted(batch)) or 'none'}."
            )
        for field in sorted(self.fields):
            if len(batch[field]) != len(images):
                raise ValueError(f"{name}: {len(batch[field])} rows of {field} for {len(images)} images.")
        wide = torch.promote_types(images.dtype, torch.float32)
        score = self.score(images.to(wide), batch)
        return Score(score.value.to(wide), {part: value.to(wide) for part, value in score.parts.items()})

    def freeze(self) -> None:
        """Fixes all weights, and eval mode, for good."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Eval mode, whatever `mode`: dropout and batch statistics have no place in a judge."""
        return super().train(False)
