"""The gradients of the terms of a loss: their norms and the cosine between them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def flat_gradient(term: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The gradient of a scalar in `weights` as one vector, 0 where it does not depend on them; the graph is kept."""
    parts = torch.autograd.grad(term, weights, retain_graph=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def cosine(first: Tensor, second: Tensor) -> float:
    """The cosine between two vectors, in [-1, 1]; 0 where one is 0.

    Between gradients of single batches it is near 0 even if their means are opposed: their noise is independent and
    longer than the means. Take the vectors of means over many batches.
    """
    return float(torch.cosine_similarity(first, second, dim=0))
