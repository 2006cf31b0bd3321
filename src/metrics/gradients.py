"""The gradients of the terms of a loss: how long they are, and whether they pull one way."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def flat_gradient(term: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The gradient of a scalar in `weights`, all in one row, 0 where it does not depend on them; the graph is kept."""
    parts = torch.autograd.grad(term, weights, retain_graph=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def compared(first: Tensor, second: Tensor, weights: Sequence[Tensor]) -> tuple[float, float, float]:
    """Norms of the gradients of two terms in `weights`, and the cosine between them (0 where one is 0)."""
    a, b = flat_gradient(first, weights), flat_gradient(second, weights)
    return float(a.norm()), float(b.norm()), float(cosine_similarity(a, b, dim=0))
