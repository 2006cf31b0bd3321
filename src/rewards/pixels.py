"""From images to what a network reads: resizing, cropping and padding in torch, differentiable, and PIL's to 1/255."""

from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from src.data.ads import read_image
from src.data.images import CHANNELS, channels_first, in_mode

Picture = str | Path | Image.Image | Tensor

RESIZES = ("shortest", "longest", "squash")
LONGEST = 16  # sides longer than so many times the other are cut before resizing, so that memory stays bounded
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's training images; CLIP, BLIP and most networks after them
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def pixels(picture: Picture, field: str = "image") -> Tensor:
    """An image as a float tensor (channels, height, width) in [0, 1].

    picture: a file, a PIL image, or a tensor, uint8 or float in [0, 1]; all of them give the same pixels. field: image,
    product, depth or saliency. Raises ValueError for a file that cannot be read.
    """
    if isinstance(picture, Tensor):
        return picture.float() / 255 if picture.dtype == torch.uint8 else picture
    if isinstance(picture, Image.Image):
        array = channels_first(in_mode(ImageOps.exif_transpose(picture), CHANNELS[field]))
    else:
        array = read_image(Path(picture), field)
    return torch.from_numpy(array).float() / 255


def fitted(images: Tensor, size: int, resize: str = "shortest", filter: str = "bicubic", clamp: bool = True) -> Tensor:
    """Images (batch, 3, height, width) in [0, 1] as (batch, 3, size, size), antialiased.

    resize: the "shortest" side to `size`, then a center crop; the "longest" side, then black borders; or "squash" both.
    Sides and offsets are rounded as by torchvision. filter: "bicubic" or "bilinear". clamp: cut what bicubic resizing
    pushes beyond [0, 1], as PIL does.
    """
    if resize == "shortest":
        for dim in (-2, -1):
            kept, side = LONGEST * min(images.shape[-2:]), images.shape[dim]
            images = images.narrow(dim, (side - kept) // 2, kept) if side > kept else images
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
