"""Random augmentation of the images that a reward scores in training.

Small reward networks are easily fooled by adversarial textures; few of them survive a shift, a blur and noise.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from src.build import loadable
from src.data.batch import Batch


@loadable
class RewardAugmentation:
    """`number` random views of each image; 0: the unchanged image.

    A view is shifted by up to `shift` pixels across and down, with the product; blurred by a Gaussian of up to `blur`
    pixels' deviation; and noise of up to `noise` deviation (images go from 0 to 1) is added.

    Raises ValueError for a negative number.
    """

    def __init__(self, number: int = 0, shift: float = 4.0, blur: float = 0.8, noise: float = 0.03) -> None:
        for name, value in (("number", number), ("shift", shift), ("blur", blur), ("noise", noise)):
            if value < 0:
                raise ValueError(f"reward_augmentation: {name}={value} must not be negative.")
        self.number, self.shift, self.blur, self.noise = number, shift, blur, noise

    def __call__(self, images: Tensor, fields: Batch, chances: Sequence[torch.Generator]) -> tuple[Tensor, Batch]:
        """The views (number * batch, 3, h, w) of images (batch, 3, h, w) in [0, 1], and the fields that go along.

        `chances`: a CPU random generator per image, on which alone its views depend.
        """
        if not self.number:
            return images, fields
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 resolves shifts to half a pixel only
            return self._views(images, fields, chances)

    def _views(self, images: Tensor, fields: Batch, chances: Sequence[torch.Generator]) -> tuple[Tensor, Batch]:
        seen, moved = [], []
        for _ in range(self.number):
            shift, blurs, noise = self._draw(images, chances)
            view = shifted(images, shift, "border")
            view = torch.stack([blurred(*pair) for pair in zip(view, blurs, strict=True)])
            seen.append((view + noise).clamp(0, 1))
            moved.append(
                {name: shifted(value, shift, "zeros") if name == "product" else value for name, value in fields.items()}
            )
        joined = {
            name: torch.cat(parts) if isinstance(parts[0], Tensor) else [row for part in parts for row in part]
            for name, parts in ((name, [part[name] for part in moved]) for name in fields)
        }
        return torch.cat(seen), joined

    def _draw(self, images: Tensor, chances: Sequence[torch.Generator]) -> tuple[Tensor, list[float], Tensor]:
        """Shift (batch, 2), deviations of the blur and noise like the images, each row from its own chance."""
        drawn = [torch.rand(4, generator=chance) for chance in chances]
        shift = torch.stack([self.shift * (2 * row[:2] - 1) for row in drawn])
        noise = torch.stack(
            [
                self.noise * row[3] * torch.randn(images.shape[1:], generator=chance)
                for row, chance in zip(drawn, chances, strict=True)
            ]
        )
        return shift, [self.blur * float(row[2]) for row in drawn], noise.to(images)


def blurred(image: Tensor, deviation: float) -> Tensor:
    """An image (channels, h, w), blurred by a Gaussian of this standard deviation in px; up to 0.1: unchanged."""
    if deviation <= 0.1:
        return image
    side = 2 * math.ceil(2.5 * deviation) + 1
    return gaussian_blur(image, [side, side], [deviation, deviation])


def shifted(images: Tensor, shift: Tensor, beyond: str) -> Tensor:
    """Images (batch, channels, h, w), each moved right and down by its `shift` (batch, 2) in pixels, bilinear.

    `beyond`: the padding, "zeros" or "border".
    """
    height, width = images.shape[-2:]
    scale = torch.tensor([2 / width, 2 / height])
    affine = torch.eye(2, 3).repeat(len(images), 1, 1)
    affine[:, :, 2] = -shift * scale
    grid = F.affine_grid(affine.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode=beyond, align_corners=False)
