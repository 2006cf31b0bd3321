"""The outline of a product: the condition of a Canny ControlNet."""

import cv2
import numpy as np
import torch
from torch import Tensor

CANNY = 100, 200  # thresholds of the edge detector, from the authors' inference code


def outline(product: Tensor) -> Tensor:
    """Canny edges, 0 or 1, (batch, 3, height, width), of products (batch, 4, height, width) in [0, 1] on black."""
    shown = (product[:, :3] * product[:, 3:] * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    edges = np.stack([cv2.Canny(np.ascontiguousarray(image), *CANNY) for image in shown])
    return torch.from_numpy(edges / 255).to(product)[:, None].expand(-1, 3, -1, -1)
