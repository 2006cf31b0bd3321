"""Changes of an ad that leave its label as it is."""

import torch

from src.data.batch import PICTURES, Batch


def augmented(batch: Batch, flip: float, colour: float) -> Batch:
    """The batch with left and right swapped in a share `flip` of its rows, in all pictures alike, and with other light.

    The light, drawn per row from torch's global generator, scales contrast, brightness and each colour channel by up to
    1 +- `colour`, in image and product alike, whose colours stay as near or far as they were.
    """
    fields = [field for field in PICTURES if field in batch]
    size, device = len(batch[fields[0]]), batch[fields[0]].device
    turned = (torch.rand(size, device=device) < flip)[:, None, None, None]
    contrast, brightness, channels = (
        1 + colour * (2 * torch.rand(size, c, 1, 1, device=device) - 1) for c in (1, 1, 3)
    )
    new = dict(batch)
    for field in fields:
        picture = torch.where(turned, batch[field].flip(-1), batch[field])
        if field in ("image", "product") and colour:
            lit = ((picture[:, :3] - 0.5) * contrast + 0.5) * brightness * channels
            picture = torch.cat([lit.clamp(0, 1), picture[:, 3:]], dim=1)
        new[field] = picture
    return new
