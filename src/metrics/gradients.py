"""How two terms of a loss pull at the same weights."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def gradient_agreement(first: Tensor, second: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Norms of the gradients of two scalars in `weights`, and the cosine between them; the graph is kept."""
    flat = []
    for term in (first, second):
        parts = torch.autograd.grad(term, weights, retain_graph=True, materialize_grads=True)
        flat.append(torch.cat([part.flatten() for part in parts]))
    return flat[0].norm(), flat[1].norm(), cosine_similarity(flat[0], flat[1], dim=0)
