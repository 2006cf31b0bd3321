"""Figures of predicted human feedback: heat maps over ads, scores, and prompts with their misaligned words."""

import textwrap
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from src.data.batch import HEAT_MAPS, SCORES, collate
from src.data.words import split_words
from src.figures.heat_maps import overlay

SHOWN = 8


@torch.no_grad()
def draw_report(system: Any, data: Any, folder: Path, count: int = SHOWN) -> list[Path]:
    """Writes `feedback.png`: of `count` test ads the image, the raters' and the predicted heat maps, the scores."""
    rows = data.split("test")
    step = max(1, len(rows) // count)
    batch = data.on_after_batch_transfer(collate([rows[index] for index in range(0, len(rows), step)][:count]))
    batch = {field: value.to(system.device) if isinstance(value, Tensor) else value for field, value in batch.items()}
    found = system.eval().predict(batch)
    size = len(batch["image"])
    figure = Figure(figsize=(1.6 * 5 + 3.0, 1.75 * size + 0.3), layout="constrained")
    axes: Any = figure.subplots(size, 6, squeeze=False, width_ratios=[1.0] * 5 + [1.9])
    titles = ["image", *(f"{name}\n{who}" for name in HEAT_MAPS for who in ("raters", "predicted"))]
    for row in range(size):
        image = batch["image"][row]
        shown = [image]
        for index, name in enumerate(HEAT_MAPS):
            shown.append(overlay(image, batch["heatmaps"][row, index]) if "heatmaps" in batch else image)
            maps = found.heat_maps if name in system.maps else None
            shown.append(image if maps is None else overlay(image, maps[row, system.maps.index(name)]))
        for axis, view, title in zip(axes[row], shown, titles, strict=False):
            axis.imshow(view.clamp(0, 1).permute(1, 2, 0).cpu().numpy())
            axis.set_axis_off()
            axis.set_title(title if row == 0 else "", fontsize=7)
        axes[row, -1].set_axis_off()
        axes[row, -1].text(0, 1, caption(batch, found, row), fontsize=6, va="top", family="monospace", parse_math=False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "feedback.png", dpi=120)
    return [folder / "feedback.png"]


def caption(batch: dict[str, Any], found: Any, row: int) -> str:
    """The prompt, with [words] that are misaligned in the prediction and words* that are so for the raters; scores."""
    words = split_words(batch["prompt"][row])
    labels = batch["aligned_words"][row].tolist() if "aligned_words" in batch else []
    marks = found.misaligned[row].tolist() if found.misaligned is not None else []
    shown = [
        f"{'[' if _at(marks, n) > 0.5 else ''}{word}{']' if _at(marks, n) > 0.5 else ''}"
        f"{'*' if n < len(labels) and labels[n] == 0 else ''}"
        for n, word in enumerate(words)
    ]
    lines = textwrap.wrap(" ".join(shown), 42)
    if found.scores is not None:
        lines += ["", f"{'':<13}raters  predicted"]
        for index, name in enumerate(SCORES):
            lines.append(f"{name:<13}{batch['scores'][row, index]:6.2f}  {found.scores[row, index]:6.2f}")
    return "\n".join(lines)


def _at(values: list[float], index: int) -> float:
    return values[index] if index < len(values) else 0.0
