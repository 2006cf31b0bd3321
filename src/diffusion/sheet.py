"""Sheets of painted pictures with what they were asked to be."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor


def draw_pictures(file: Path, pictures: Tensor, captions: Sequence[str], columns: int = 6) -> Path:
    """Writes float pictures (count, 3, height, width) in [0, 1] as a sheet of `columns`, a caption under each."""
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(2.1 * columns, 2.55 * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, caption in zip(axes.flat, pictures, captions, strict=False):
        axis.imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy())
        axis.text(0.5, -0.02, textwrap.fill(caption, 40), transform=axis.transAxes, ha="center", va="top", fontsize=5)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    return file
