"""How different the pictures are that a generator paints for one prompt."""

import torch
import torch.nn.functional as F
from torch import Tensor


def within_prompt_diversity(features: Tensor) -> Tensor:
    """Mean cosine distance between the tries at each prompt, (prompts,) in [0, 2]; 0: all alike.

    features: (tries, prompts, width). Raises ValueError for fewer than two tries, which have no distance.
    """
    if len(features) < 2:
        raise ValueError(f"diversity needs at least two tries at each prompt, got {len(features)}.")
    unit = F.normalize(features, dim=2)
    cosines = torch.einsum("ipw,jpw->pij", unit, unit)
    tries = len(features)
    return (1 - cosines).sum(dim=(1, 2)) / (tries * (tries - 1))  # the diagonal adds 0
