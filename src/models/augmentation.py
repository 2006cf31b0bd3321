"""Augmentation of ads that does not change their label."""

import torch
import torch.nn.functional as F
from torch import Tensor

from src.data.batch import IMAGE_FIELDS, Batch

SMALLEST = 0.8  # side of a crop over the image's (Rich Human Feedback, arXiv 2312.10240: crops of 80-100 %)


def augmented(batch: Batch, flip: float, colour: float, crop: float = 0.0) -> Batch:
    """Changes all image fields of a batch alike, so that product and maps stay in their place in the image.

    flip: share of the rows that are flipped horizontally; not for prompts that say "left of". crop: share of the rows
    that are cropped to 80-100 % of both sides and resized back. colour: contrast, brightness and each color channel are
    scaled by a random factor in 1 +- `colour`, the same for image and product, so that their contrast stays. Random
    numbers come from torch's global generator.
    """
    fields = [field for field in IMAGE_FIELDS if field in batch]
    size, device = len(batch[fields[0]]), batch[fields[0]].device
    turned = (torch.rand(size, device=device) < flip)[:, None, None, None]
    contrast, brightness, channels = (
        1 + colour * (2 * torch.rand(size, c, 1, 1, device=device) - 1) for c in (1, 1, 3)
    )
    windows = _windows(size, crop, device) if crop else None
    new = dict(batch)
    for field in fields:
        image = torch.where(turned, batch[field].flip(-1), batch[field])
        if windows is not None:
            image = _cropped(image, windows)
        if field in ("image", "product") and colour:
            lit = ((image[:, :3] - 0.5) * contrast + 0.5) * brightness * channels
            image = torch.cat([lit.clamp(0, 1), image[:, 3:]], dim=1)
        new[field] = image
    return new


def _windows(size: int, share: float, device: torch.device) -> Tensor:
    """(size, 2, 3), for `affine_grid`: a window within [-1, 1]^2 for each row; the whole for all but a `share`."""
    draw, side, across, down = torch.rand(4, size, device=device)
    side = torch.where(draw < share, SMALLEST + (1 - SMALLEST) * side, 1.0)
    windows = torch.zeros(size, 2, 3, device=device)
    windows[:, 0, 0] = windows[:, 1, 1] = side
    windows[:, :, 2] = ((1 - side) * (2 * torch.stack([across, down]) - 1)).T
    return windows


def _cropped(images: Tensor, windows: Tensor) -> Tensor:
    grid = F.affine_grid(windows, list(images.shape), align_corners=False)
    found = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False).to(images.dtype)
    whole = (windows[:, 0, 0] == 1)[:, None, None, None]
    return torch.where(whole, images, found)
