"""The confusion matrix of a classifier."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor


def confusion_figure(counts: Tensor, classes: Sequence[str]) -> Figure:
    """The confusion matrix drawn: a row per true class, shade and upper number its share of the row, below it the
    count.
    """
    shares = counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
    names = [name.replace("_", "\n") for name in classes]
    figure = Figure(figsize=(1.1 * len(classes) + 1.2, len(classes) + 1.0), layout="constrained")
    axes: Any = figure.subplots()
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for row, column in [(i, j) for i in range(len(names)) for j in range(len(names))]:
        share = float(shares[row, column])
        text = f"{share:.0%}\n{int(counts[row, column])}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if share > 0.5 else "black")
    return figure
