"""Heat maps over images."""

import torch
import torch.nn.functional as F
from torch import Tensor

RED = (1.0, 0.1, 0.0)


def overlay(image: Tensor, heat: Tensor) -> Tensor:
    """An image (3, height, width) in grey under a heat map (h, w) in red; both in [0, 1], as is the result."""
    heat = F.interpolate(
        heat[None, None].float(), image.shape[-2:], mode="bilinear", align_corners=False, antialias=True
    )[0]
    grey = image.mean(dim=0, keepdim=True) * 0.75 + 0.15
    strength = heat.clamp(0, 1).sqrt() * 0.85
    return (grey * (1 - strength) + torch.tensor(RED, device=image.device).view(3, 1, 1) * strength).clamp(0, 1)
