"""Figures of RFNet's predictions."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from matplotlib.figure import Figure
from torch import Tensor

from src.data.batch import Batch, collate
from src.figures.confusion import confusion_figure


def attribution(system: Any, batch: Batch) -> Tensor:
    """Saliency of the prediction: |input gradient| of the most likely class, (batch, height, width) in [0, 1].

    Summed over channels (Simonyan et al. 2013), blurred, and scaled by the 99th percentile of each image.
    """
    with torch.enable_grad():
        image = batch["image"].detach().clone().requires_grad_()
        best = system.log_probabilities({**batch, "image": image}).max(dim=1).values
        (gradient,) = torch.autograd.grad(best.sum(), image)
    strength = gradient.abs().sum(dim=1, keepdim=True)
    window = image.shape[-1] // 24 * 2 + 1
    for _ in range(2):
        strength = F.avg_pool2d(strength, window, 1, window // 2, count_include_pad=False)
    strength = strength[:, 0]
    top = strength.flatten(1).quantile(0.99, dim=1)[:, None, None]
    return (strength / top.clamp_min(1e-12)).clamp(0, 1)


def chosen_rows(labels: list[int], num_classes: int, count: int) -> list[int]:
    """Indices of up to `count` rows, as evenly distributed over the classes as possible, sorted by class."""
    queues = [[row for row, label in enumerate(labels) if label == c] for c in range(num_classes)]
    turns = [(turn, c) for turn in range(len(labels)) for c in range(num_classes) if turn < len(queues[c])][:count]
    return [queues[c][turn] for turn, c in sorted(turns, key=lambda pair: pair[1])]


def draw_report(system: Any, data: Any, folder: Path, count: int = 10, among: int = 200) -> list[Path]:
    """Writes `ads.png`, with `count` of the first `among` test ads, and `confusion.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = data.split("test")
    records = [rows[index] for index in range(min(among, len(rows)))]
    labels = [int(record["label"]) for record in records]
    records = [records[row] for row in chosen_rows(labels, len(system.classes), count)]
    batch = move_data_to_device(data.on_after_batch_transfer(collate(records)), system.device)
    paths = [folder / "ads.png", folder / "confusion.png"]
    ads_figure(system.eval(), batch).savefig(paths[0], dpi=110)
    confusion_figure(system.confusion["test"], system.classes).savefig(paths[1], dpi=110)
    return paths


def ads_figure(system: Any, batch: Batch) -> Figure:
    """One row per ad: its images, the image with its `attribution`, the class probabilities and the title."""
    with torch.no_grad():
        probabilities = system.log_probabilities(batch).exp().cpu()
    images = [field for field in ("image", "product", "depth", "saliency") if field in system.fields]
    seen = attribution(system, batch).cpu() if "image" in images else None
    columns = len(images) + (seen is not None) + 1
    size = len(probabilities)
    figure = Figure(figsize=(1.5 * columns + 3.2, 1.65 * size + 0.3), layout="constrained")
    axes: Any = figure.subplots(size, columns, squeeze=False, width_ratios=[1.0] * (columns - 1) + [1.6])
    for row in range(size):
        for column, field in enumerate(images):
            _show(axes[row, column], batch[field][row].cpu())
            axes[row, column].set_title(field if row == 0 else "", fontsize=8)
        if seen is not None:
            axis = axes[row, len(images)]
            _show(axis, batch["image"][row].cpu().mean(dim=0, keepdim=True))
            axis.imshow(seen[row].numpy(), cmap="inferno", alpha=0.15 + 0.6 * seen[row].numpy(), vmin=0, vmax=1)
            axis.set_title("attribution" if row == 0 else "", fontsize=8)
        _bars(axes[row, -1], probabilities[row], int(batch["label"][row]), system.classes, _title(batch, row))
    return figure


def _show(axis: Any, image: Tensor) -> None:
    pixels = image.clamp(0, 1).permute(1, 2, 0).numpy()
    axis.imshow(pixels if pixels.shape[2] > 1 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
    axis.set_xticks([])
    axis.set_yticks([])


def _bars(axis: Any, probabilities: Tensor, label: int, classes: tuple[str, ...], title: str) -> None:
    """The true class has a black frame; the most likely class is green if correct, else red."""
    best = int(probabilities.argmax())
    colours = [
        "tab:green" if c == best == label else "tab:red" if c == best else "lightgrey" for c in range(len(classes))
    ]
    frames = ["black" if c == label else "none" for c in range(len(classes))]
    axis.barh(range(len(classes)), probabilities.numpy(), color=colours, edgecolor=frames, linewidth=1.5)
    axis.set_xlim(0, 1)
    axis.invert_yaxis()
    axis.set_yticks(range(len(classes)), [name.replace("_", " ") for name in classes], fontsize=6.5)
    axis.set_xticks([])
    axis.yaxis.tick_right()
    axis.set_title(title, fontsize=6, loc="right")


def _title(batch: Batch, row: int) -> str:
    title = batch["title"][row] if "title" in batch else ""
    return title if len(title) < 64 else title[:60] + " ..."
