"""Sheets of painted pictures with what they were asked to be."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

INCHES = 2.05  # of a picture's height on the sheet


def draw_pictures(file: Path, pictures: Tensor, captions: Sequence[str], columns: int = 6, title: str = "") -> Path:
    """Writes float pictures (count, 3, height, width) in [0, 1] as a sheet of `columns`, a caption under each."""
    rows, across = -(-len(pictures) // columns), INCHES * pictures.shape[3] / pictures.shape[2]
    figure = Figure(figsize=(across * columns, (INCHES + 0.4) * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title, fontsize=9)
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, caption in zip(axes.flat, pictures, captions, strict=False):
        axis.imshow(picture.clamp(0, 1).permute(1, 2, 0).numpy())
        lines = textwrap.fill(caption, int(20 * across))
        axis.text(0.5, -0.02, lines, transform=axis.transAxes, ha="center", va="top", fontsize=5)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    return file


def draw_pairs(file: Path, before: Tensor, after: Tensor, captions: Sequence[str], columns: int = 4) -> Path:
    """Writes each picture of `before` beside its one of `after`, `columns` such pairs a row, captions under them."""
    gap = before.new_ones(len(before), 3, before.shape[2], before.shape[3] // 32)
    return draw_pictures(file, torch.cat([before, gap, after.to(before)], dim=3), captions, columns, "before | after")


def draw_columns(file: Path, pictures: Mapping[str, Tensor], captions: Sequence[str]) -> Path:
    """Writes a column of pictures under each name, a row for each caption, which stands under its first picture."""
    rows = torch.stack(list(pictures.values()), dim=1).flatten(0, 1)
    told = [name if column else caption for caption in captions for column, name in enumerate(pictures)]
    return draw_pictures(file, rows, told, columns=len(pictures), title="   |   ".join(pictures))
