"""Augmentation of ads that does not change their label."""

import torch

from src.data.batch import IMAGE_FIELDS, Batch


def augmented(batch: Batch, flip: float, colour: float) -> Batch:
    """Flips a share `flip` of the rows horizontally, in all image fields, and applies color jitter.

    Contrast, brightness and each color channel are scaled by a random factor in 1 +- `colour`, the same for image and
    product, so that their contrast stays. Random numbers come from torch's global generator.
    """
    fields = [field for field in IMAGE_FIELDS if field in batch]
    size, device = len(batch[fields[0]]), batch[fields[0]].device
    turned = (torch.rand(size, device=device) < flip)[:, None, None, None]
    contrast, brightness, channels = (
        1 + colour * (2 * torch.rand(size, c, 1, 1, device=device) - 1) for c in (1, 1, 3)
    )
    new = dict(batch)
    for field in fields:
        image = torch.where(turned, batch[field].flip(-1), batch[field])
        if field in ("image", "product") and colour:
            lit = ((image[:, :3] - 0.5) * contrast + 0.5) * brightness * channels
            image = torch.cat([lit.clamp(0, 1), image[:, 3:]], dim=1)
        new[field] = image
    return new
