"""Confusion matrix of a classifier."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor


def confusion_figure(counts: Tensor, classes: Sequence[str]) -> Figure:
    """The confusion matrix with one row per true class: the share of the row (color and text) and the count."""
    shares = counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
    names, ticks = [name.replace("_", "\n") for name in classes], range(len(classes))
    figure = Figure(figsize=(1.1 * len(classes) + 1.2, len(classes) + 1.0), layout="constrained")
    axes: Any = figure.subplots()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(ticks, names, fontsize=8)
    axes.set_yticks(ticks, names, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true")
    for (row, column), share in zip([(i, j) for i in ticks for j in ticks], shares.flatten().tolist(), strict=True):
        text = f"{share:.0%}\n{int(counts[row, column])}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if share > 0.5 else "black")
    return figure
