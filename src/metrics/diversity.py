"""Diversity of generated images, within one prompt and between prompts."""

from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


def within_prompt_diversity(features: Tensor) -> Tensor:
    """Mean cosine distance between the tries for each prompt, (prompts,) in [0, 2]; 0: all equal.

    features: (tries, prompts, width). Raises ValueError for fewer than two tries.
    """
    _check(features)
    unit = F.normalize(features, dim=2)
    cosines = torch.einsum("ipw,jpw->pij", unit, unit)
    tries = len(features)
    return (1 - cosines).sum(dim=(1, 2)) / (tries * (tries - 1))  # the diagonal adds 0


def between_prompt_diversity(features: Tensor) -> Tensor:
    """Mean cosine distance between the image of each prompt and those of other prompts, (prompts,) in [0, 2].

    features: (tries, prompts, width); tries are compared each in itself. NaN where there is one prompt only.
    """
    unit = F.normalize(features, dim=2)
    cosines = torch.einsum("ipw,iqw->pq", unit, unit) / len(features)
    prompts = features.shape[1]
    return (1 - cosines).sum(dim=1) / (prompts - 1) if prompts > 1 else features.new_full((1,), torch.nan)


def within_prompt_dissimilarity(images: Tensor) -> Tensor:
    """Mean of 1 - SSIM between the tries for each prompt, (prompts,) in [0, 2]; 0: all equal. Uses no network.

    images: (tries, prompts, channels, height, width) in [0, 1]. SSIM: Wang et al. 2004, Gaussian window of 11 px; as a
    measure of diversity: Odena et al. 2017. Raises ValueError for fewer than two tries.
    """
    _check(images)
    pairs = [
        1 - structural_similarity_index_measure(first, second, data_range=1.0, reduction="none")  # pyright: ignore
        for first, second in combinations(images.float(), 2)
    ]
    return torch.stack(pairs).mean(dim=0)


def _check(tries: Tensor) -> None:
    if len(tries) < 2:
        raise ValueError(f"diversity needs at least two tries per prompt, got {len(tries)}.")
