"""How well predicted scores follow people's: Pearson's and Spearman's correlation, without a logistic fit."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.regression import pearson_corrcoef
from torchmetrics.utilities import dim_zero_cat


def plcc(predicted: Tensor, true: Tensor) -> Tensor:
    """Pearson's linear correlation of two vectors (samples,), float64 in [-1, 1]; higher is better.

    0 if one of them is constant, has one sample or none: it orders nothing. torchmetrics has NaN there, and in float32
    also for a vector of one outlier among some thousand equal values, so this computes in float64, on the CPU.
    """
    x, y = _vectors(predicted, true)
    if not len(x) or x.min() == x.max() or y.min() == y.max():
        return torch.zeros((), dtype=torch.float64)
    return pearson_corrcoef(x, y)


def srcc(predicted: Tensor, true: Tensor) -> Tensor:
    """Spearman's rank correlation of two vectors (samples,), float64 in [-1, 1]: `plcc` of their ranks.

    torchmetrics' own adds 1e-6 to the denominator, which a few samples feel, and sums ranks of ties in int32.
    """
    return plcc(*map(ranks, _vectors(predicted, true)))


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1 of a vector, float64; equal values have the mean of their places."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count - 1) / 2).double()[place]


def _vectors(predicted: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    if predicted.ndim != 1 or predicted.shape != true.shape:
        raise ValueError(
            f"scores {tuple(predicted.shape)} and {tuple(true.shape)}: two vectors of equal length are needed."
        )
    for what, scores in (("predicted", predicted), ("true", true)):
        if bad := int((~scores.isfinite()).sum()):
            raise ValueError(f"{what} scores: {bad} of {len(scores)} are not finite.")
    return predicted.detach().cpu().double(), true.detach().cpu().double()


class Correlation(Metric):
    """`plcc` and `srcc` of each score over all samples that were added, in all processes.

    `names` are those of the columns. <name>_plcc and <name>_srcc of each, mean_plcc and mean_srcc over the names.
    """

    full_state_update = False
    predicted: list[Tensor]
    true: list[Tensor]

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.add_state("predicted", [], dist_reduce_fx="cat")
        self.add_state("true", [], dist_reduce_fx="cat")

    def update(self, predicted: Tensor, true: Tensor) -> None:
        """Adds scores, both (batch, names). Raises ValueError for another shape, or a score that is not finite."""
        for what, scores in (("predicted", predicted), ("true", true)):
            if scores.shape != true.shape or scores.ndim != 2 or scores.shape[1] != len(self.names):
                raise ValueError(f"{what} scores {tuple(scores.shape)}: (batch, {len(self.names)}) is needed.")
            for name, bad in zip(self.names, (~scores.isfinite()).sum(dim=0).tolist(), strict=True):
                if bad:
                    raise ValueError(f"{what} scores, {name}: {bad} of {len(scores)} are not finite.")
        self.predicted.append(predicted.detach().float())
        self.true.append(true.detach().float())

    def compute(self) -> dict[str, Tensor]:
        predicted, true = dim_zero_cat(self.predicted), dim_zero_cat(self.true)
        found = {}
        for kind, measure in (("plcc", plcc), ("srcc", srcc)):
            values = [measure(x, y).to(predicted) for x, y in zip(predicted.T, true.T, strict=True)]
            found |= {f"{name}_{kind}": value for name, value in zip(self.names, values, strict=True)}
            found[f"mean_{kind}"] = torch.stack(values).mean()
        return found
