"""What a reward is shown of a picture while it teaches: the picture itself, or random views of it.

A small net is easy to fool by textures made against it; what fools it must survive a shift, a blur and some noise.
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
    """`number` random views of each picture; 0: the picture as it is.

    A view is shifted by up to `shift` pixels across and down, with the product; blurred by a Gaussian of up to `blur`
    pixels' deviation; and noise of up to `noise` deviation (pictures go from 0 to 1) is added.

    Raises ValueError for a negative number.
    """

    def __init__(self, number: int = 0, shift: float = 4.0, blur: float = 0.8, noise: float = 0.03) -> None:
        for name, value in (("number", number), ("shift", shift), ("blur", blur), ("noise", noise)):
            if value < 0:
                raise ValueError(f"reward_augmentation: {name}={value} must not be negative.")
        self.number, self.shift, self.blur, self.noise = number, shift, blur, noise

    def __call__(self, pictures: Tensor, fields: Batch, chances: Sequence[torch.Generator]) -> tuple[Tensor, Batch]:
        """The views (number * batch, 3, h, w) of pictures (batch, 3, h, w) in [0, 1], and the fields that go along.

        `chances`: the CPU's random numbers for each picture, which alone its views depend on.
        """
        if not self.number:
            return pictures, fields
        with torch.autocast(pictures.device.type, enabled=False):  # bfloat16 would tell shifts to half a pixel
            return self._views(pictures, fields, chances)

    def _views(self, pictures: Tensor, fields: Batch, chances: Sequence[torch.Generator]) -> tuple[Tensor, Batch]:
        seen, moved = [], []
        for _ in range(self.number):
            shift, blurs, noise = self._draw(pictures, chances)
            view = shifted(pictures, shift, "border")
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

    def _draw(self, pictures: Tensor, chances: Sequence[torch.Generator]) -> tuple[Tensor, list[float], Tensor]:
        """Shift (batch, 2), deviations of the blur and noise like the pictures, each row from its own chance."""
        drawn = [torch.rand(4, generator=chance) for chance in chances]
        shift = torch.stack([self.shift * (2 * row[:2] - 1) for row in drawn])
        noise = torch.stack(
            [
                self.noise * row[3] * torch.randn(pictures.shape[1:], generator=chance)
                for row, chance in zip(drawn, chances, strict=True)
            ]
        )
        return shift, [self.blur * float(row[2]) for row in drawn], noise.to(pictures)


def blurred(picture: Tensor, deviation: float) -> Tensor:
    """A picture (channels, h, w), blurred by a Gaussian of so many pixels; at most 0.1 changes nothing."""
    if deviation <= 0.1:
        return picture
    side = 2 * math.ceil(2.5 * deviation) + 1
    return gaussian_blur(picture, [side, side], [deviation, deviation])


def shifted(pictures: Tensor, shift: Tensor, beyond: str) -> Tensor:
    """Pictures (batch, channels, h, w), each moved right and down by its `shift` (batch, 2) in pixels, bilinear.

    `beyond`: what comes in from outside, "zeros" or the "border".
    """
    height, width = pictures.shape[-2:]
    scale = torch.tensor([2 / width, 2 / height])
    affine = torch.eye(2, 3).repeat(len(pictures), 1, 1)
    affine[:, :, 2] = -shift * scale
    grid = F.affine_grid(affine.to(pictures), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode=beyond, align_corners=False)
