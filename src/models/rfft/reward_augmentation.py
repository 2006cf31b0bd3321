"""Random augmentation of the images that a reward scores in training.

Small reward networks are easily fooled by adversarial textures, few of which survive a shift, blur and noise.
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

    A view is shifted by up to `shift` pixels together with its product, blurred with a standard deviation of up to
    `blur` pixels, and has noise with a standard deviation of up to `noise` (images are in [0, 1]).
    """

    def __init__(self, number: int = 0, shift: float = 4.0, blur: float = 0.8, noise: float = 0.03) -> None:
        for name, value in (("number", number), ("shift", shift), ("blur", blur), ("noise", noise)):
            if value < 0:
                raise ValueError(f"reward_augmentation: {name}={value} must not be negative.")
        self.number, self.shift, self.blur, self.noise = number, shift, blur, noise

    def __call__(self, images: Tensor, fields: Batch, chances: Sequence[torch.Generator]) -> tuple[Tensor, Batch]:
        """The views (number * batch, 3, h, w) of images (batch, 3, h, w) in [0, 1], and their fields.

        `chances`: a CPU random generator for each image.
        """
        if not self.number:
            return images, fields
        with torch.autocast(images.device.type, enabled=False):  # bfloat16 resolves shifts only to half a pixel
            return self._views(images, fields, chances)

    def _views(self, images: Tensor, fields: Batch, chances: Sequence[torch.Generator]) -> tuple[Tensor, Batch]:
        views, products = [], []
        for _ in range(self.number):
            drawn = [(torch.rand(4, generator=c), torch.randn(images.shape[1:], generator=c)) for c in chances]
            shift = torch.stack([self.shift * (2 * u[:2] - 1) for u, _ in drawn])
            noise = torch.stack([self.noise * u[3] * n for u, n in drawn]).to(images)
            moved = zip(shifted(images, shift, "border"), drawn, strict=True)
            view = torch.stack([blurred(image, self.blur * float(u[2])) for image, (u, _) in moved])
            views.append((view + noise).clamp(0, 1))
            if "product" in fields:
                products.append(shifted(fields["product"], shift, "zeros"))
        repeated = {
            name: torch.cat([value] * self.number) if isinstance(value, Tensor) else [*value] * self.number
            for name, value in fields.items()
        }
        return torch.cat(views), repeated | ({"product": torch.cat(products)} if products else {})


def blurred(image: Tensor, deviation: float) -> Tensor:
    """An image (channels, h, w) after a Gaussian blur with this standard deviation in px; unchanged up to 0.1."""
    if deviation <= 0.1:
        return image
    side = 2 * math.ceil(2.5 * deviation) + 1
    return gaussian_blur(image, [side, side], [deviation, deviation])


def shifted(images: Tensor, shift: Tensor, beyond: str) -> Tensor:
    """Images (batch, channels, h, w) moved right and down by `shift` (batch, 2) pixels; bilinear.

    `beyond`: padding mode, "zeros" or "border".
    """
    height, width = images.shape[-2:]
    scale = torch.tensor([2 / width, 2 / height])
    affine = torch.eye(2, 3).repeat(len(images), 1, 1)
    affine[:, :, 2] = -shift * scale
    grid = F.affine_grid(affine.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode=beyond, align_corners=False)
