"""Grids of images with captions."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

INCHES = 2.05  # height of an image in the figure


def draw_images(file: Path, images: Tensor, captions: Sequence[str], columns: int = 6, title: str = "") -> Path:
    """Writes float images (count, 3, height, width) in [0, 1] as a grid, with a caption under each."""
    rows, across = -(-len(images) // columns), INCHES * images.shape[3] / images.shape[2]
    figure = Figure(figsize=(across * columns, (INCHES + 0.4) * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title, fontsize=9)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, caption in zip(axes.flat, images, captions, strict=False):
        axis.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy())
        lines = textwrap.fill(caption, int(20 * across))
        axis.text(0.5, -0.02, lines, transform=axis.transAxes, ha="center", va="top", fontsize=5)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    return file


def draw_pairs(file: Path, before: Tensor, after: Tensor, captions: Sequence[str], columns: int = 4) -> Path:
    """Writes pairs of images side by side, `columns` pairs per row, with captions."""
    gap = before.new_ones(len(before), 3, before.shape[2], before.shape[3] // 32)
    return draw_images(file, torch.cat([before, gap, after.to(before)], dim=3), captions, columns, "before | after")


def draw_columns(file: Path, images: Mapping[str, Tensor], captions: Sequence[str]) -> Path:
    """Writes one column of images per name and one row per caption, which is under the first image of the row."""
    rows = torch.stack(list(images.values()), dim=1).flatten(0, 1)
    texts = [name if column else caption for caption in captions for column, name in enumerate(images)]
    return draw_images(file, rows, texts, columns=len(images), title="   |   ".join(images))
