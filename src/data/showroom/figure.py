"""A labelled contact sheet of the showroom: `python -m src.data.showroom.figure OUT.png [COLUMNS] [SPLIT]`."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from src.data.batch import CLASSES
from src.data.showroom.scene import FAULTS
from src.data.showroom.world import Showroom

REASONS = {
    "none": "", "floating": "hangs above the floor", "into_wall": "stands on no floor",
    "over_edge": "half off the table", "too_large": "far too large", "too_small": "far too small",
    "own_colours": "drowns in its own colours", "clutter": "drowns in clutter", "legs": "grew legs",
    "base": "grew a base", "handle": "grew a handle", "twin": "grew a twin",
}  # fmt: skip


def sheet(columns: int, split: str, size: int = 192, seed: int = 0, margin: int = 6) -> Image.Image:
    """One row per availability class, `columns` images each: its faults in turn, named below."""
    images = Showroom({split: 400 * columns}, size=size, seed=seed).split(split)
    found: dict[int, list[int]] = {i: [] for i in range(len(CLASSES))}
    briefs: set[int] = set()
    for index in range(len(images)):
        scene = images.scene(index)
        row, faults = found[scene.label], FAULTS[CLASSES[scene.label]]
        if scene.fault != faults[len(row) % len(faults)]:
            continue
        if len(row) < columns and scene.brief.group not in briefs:
            row.append(index)
            briefs.add(scene.brief.group)
        if min(map(len, found.values())) == columns:
            break
    left, line = 120, size + 18
    page = Image.new("RGB", (left + columns * (size + margin), len(CLASSES) * (line + margin)), "white")
    pen = ImageDraw.Draw(page)
    for row, (label, indices) in enumerate(found.items()):
        y = row * (line + margin)
        pen.text((8, y + size // 2), CLASSES[label].replace("_", " "), "black")
        for column, index in enumerate(indices):
            x = left + column * (size + margin)
            page.paste(Image.fromarray(np.ascontiguousarray(images[index]["image"].transpose(1, 2, 0))), (x, y))
            pen.text((x + 2, y + size + 3), REASONS[images.scene(index).fault], "black")
    return page


if __name__ == "__main__":
    target = Path(sys.argv[1])
    sheet(int(sys.argv[2]) if len(sys.argv) > 2 else 8, sys.argv[3] if len(sys.argv) > 3 else "train").save(target)
    print(target)
