"""Gradients of the terms of a loss."""

from collections.abc import Sequence

import torch
from torch import Tensor


def flat_gradient(term: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The gradient of a scalar in `weights` as one vector, 0 where it does not depend on them; the graph is kept."""
    parts = torch.autograd.grad(term, weights, retain_graph=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])
