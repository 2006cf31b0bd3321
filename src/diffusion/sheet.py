"""Sheets of painted pictures with what they were asked to be."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
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


def draw_pairs(file: Path, before: Tensor, after: Tensor, captions: Sequence[str], columns: int = 4) -> Path:
    """Writes each picture of `before` beside its one of `after`, `columns` such pairs a row, captions under them."""
    gap = before.new_ones(len(before), 3, before.shape[2], before.shape[3] // 32)
    pairs = torch.cat([before, gap, after.to(before)], dim=3)
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(4.1 * columns, 2.45 * rows + 0.3), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle("before | after", fontsize=9)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, caption in zip(axes.flat, pairs, captions, strict=False):
        axis.imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy())
        axis.text(0.5, -0.02, textwrap.fill(caption, 80), transform=axis.transAxes, ha="center", va="top", fontsize=5.5)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    return file
