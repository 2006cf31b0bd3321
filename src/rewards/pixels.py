"""From images to what a network reads: resizing, cropping and padding in torch, differentiable, and PIL's to 1/255."""

import torch
import torch.nn.functional as F
from torch import Tensor

RESIZES = ("shortest", "longest", "squash")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's training images; CLIP, BLIP and most networks after them
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def fitted(images: Tensor, size: int, resize: str = "shortest", filter: str = "bicubic", clamp: bool = True) -> Tensor:
    """Images (batch, 3, height, width) in [0, 1] as (batch, 3, size, size), antialiased.

    resize: the "shortest" side to `size`, then a center crop; the "longest" side, then black borders; or "squash" both.
    Sides and offsets are rounded as by torchvision. filter: "bicubic" or "bilinear". clamp: cut what bicubic resizing
    pushes beyond [0, 1], as PIL does.
    """
    images = _resized(images, size, resize, filter, clamp)
    down, across = (size - side for side in images.shape[-2:])
    if resize == "shortest":
        top, left = round(-down / 2), round(-across / 2)
        return images[..., top : top + size, left : left + size]
    return F.pad(images, (across // 2, across - across // 2, down // 2, down - down // 2))


def _resized(images: Tensor, size: int, resize: str, filter: str, clamp: bool) -> Tensor:
    height, width = images.shape[-2:]
    if resize == "squash":
        sides = [size, size]
    elif resize == "shortest":
        sides = [side * size // min(height, width) for side in (height, width)]
    else:
        sides = [max(1, round(side * size / max(height, width))) for side in (height, width)]
    if sides == [height, width]:
        return images
    images = F.interpolate(images, sides, mode=filter, align_corners=False, antialias=True)
    return images.clamp(0, 1) if clamp else images


def channels(values: tuple[float, ...]) -> Tensor:
    """A mean or standard deviation per channel, (3, 1, 1)."""
    return torch.tensor(values).view(3, 1, 1)
