"""The loss of HPS: how people's choices within groups of any sizes differ from the softmax of the groups' logits."""

from typing import NamedTuple

import torch
from torch import Tensor


class GroupLoss(NamedTuple):
    """loss: scalar, at least 0. chance: the loss of equal logits, log n for groups of n with one choice."""

    loss: Tensor
    chance: Tensor


def group_log_softmax(logits: Tensor, place: Tensor) -> Tensor:
    """log of the softmax within each group, (rows,); place: (rows,), the group of each row, 0, 1, ..."""
    count = int(place.max()) + 1
    top = logits.new_full((count,), -torch.inf).scatter_reduce(0, place, logits.detach(), "amax")
    shifted = logits - top[place]
    return shifted - logits.new_zeros(count).index_add(0, place, shifted.exp()).log()[place]


def group_loss(logits: Tensor, groups: Tensor, chosen: Tensor, weight: Tensor | None = None) -> GroupLoss:
    """The weighted mean over groups of the cross-entropy of the choices, minus their entropy: 0 if they are matched.

    The entropy, log 2 for a tie of two, has no gradient; without it a perfect fit of ties has the loss 0, too.

    Args:
        logits: (rows,). groups: (rows,), integers, in any order.
        chosen: (rows,), the share of its group's choices that a row got. A group without a choice, or of one row, does
            not count.
        weight: (rows,), of its group, the same for all its rows; None: 1.
    """
    place = groups.unique(return_inverse=True)[1]
    logits, chosen = logits.float(), chosen.float()

    def sums(values: Tensor) -> Tensor:
        return values.new_zeros(int(place.max()) + 1).index_add(0, place, values)

    total, size = sums(chosen), sums(torch.ones_like(logits))
    target = chosen / total.clamp_min(1e-12)[place]
    order = torch.xlogy(target, target)
    losses = sums(order - target * group_log_softmax(logits, place))
    chances = sums(order + target * size[place].log())
    counts = ((total > 0) & (size > 1)).float()
    if weight is not None:
        counts = counts * sums(weight.float()) / size
    counts = counts / counts.sum().clamp_min(1e-12)
    return GroupLoss((counts * losses).sum(), (counts * chances).sum())
