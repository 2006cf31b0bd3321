"""The products and props of the showroom: the rows of `catalogue.csv` and their rendered views."""

import csv
import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

HERE = Path(__file__).parent
FOCAL = 0.5 / math.tan(math.radians(10))  # of the sprites' camera, in frames
MIN_ALPHA = 8  # of 255: fainter pixels are cut off


@dataclass(frozen=True)
class Item:
    """A row of the catalogue; sizes in cm, as the furniture library states them."""

    item: str
    name: str
    surface: str  # where it stands: "floor", "table" or "both"
    role: str  # "product", or "prop" if it only ever furnishes
    split: str  # "train", "val", "test", or "all" for props
    material: str
    width_cm: float
    depth_cm: float
    height_cm: float
    creator: str


@dataclass(frozen=True)
class View:
    """One rendered view, cut to what is visible. `anchor` is the ground point under the item's centre."""

    rgba: np.ndarray  # (height, width, 4) uint8, straight alpha
    depth: np.ndarray  # (height, width) uint8: 0 at `near_cm`, 255 at `far_cm`
    shadow: np.ndarray  # (height, width) uint8: 255 is fully dark
    elevation: float  # degrees below the horizon at which the camera sees the anchor
    pixels_per_cm: float  # at the anchor
    anchor: tuple[float, float]  # x, y in `rgba`
    shadow_anchor: tuple[float, float]  # x, y in `shadow`
    near_cm: float  # distance of the nearest and farthest point beyond the anchor; negative is nearer
    far_cm: float


@functools.cache
def catalogue() -> tuple[Item, ...]:
    """Every item, in the file's order."""
    with open(HERE / "catalogue.csv", newline="") as file:
        rows: list[dict[str, Any]] = [
            {k: float(v) if k.endswith("_cm") else v for k, v in row.items()} for row in csv.DictReader(file)
        ]
    return tuple(Item(**row) for row in rows)


@functools.cache
def views(item: str) -> tuple[View, ...]:
    """The rendered views of `item`: all yaws of the low camera, then all of the high one."""
    folder = HERE / "sprites"
    geometry = json.loads((folder / f"{item}.json").read_text())
    colours = cv2.imread(str(folder / f"{item}.webp"), cv2.IMREAD_UNCHANGED)
    maps = cv2.imread(str(folder / f"{item}.maps.webp"), cv2.IMREAD_COLOR)
    if colours is None or maps is None:
        raise ValueError(f"{folder / item}.webp cannot be read: the sprites are incomplete")
    colours = cv2.cvtColor(colours, cv2.COLOR_BGRA2RGBA)
    frame = geometry["frame"]
    found = []
    for i, view in enumerate(geometry["views"]):
        columns = slice(i * frame, (i + 1) * frame)
        rgba, shadow, depth = colours[:, columns], maps[:, columns, 1], maps[:, columns, 2]
        shadow = np.where(shadow > 12, shadow, 0).astype(np.uint8)
        top, left, bottom, right = _box(rgba[..., 3] > MIN_ALPHA)
        shadow_top, shadow_left, shadow_bottom, shadow_right = _box(shadow > 0)
        x, y = view["anchor"]
        below = math.degrees(math.atan((y - frame / 2) / FOCAL / frame))
        found.append(
            View(
                rgba=np.ascontiguousarray(rgba[top:bottom, left:right]),
                depth=np.ascontiguousarray(depth[top:bottom, left:right]),
                shadow=np.ascontiguousarray(shadow[shadow_top:shadow_bottom, shadow_left:shadow_right]),
                elevation=view["elevation"] + below,
                pixels_per_cm=view["pixels_per_cm"],
                anchor=(x - left, y - top),
                shadow_anchor=(x - shadow_left, y - shadow_top),
                near_cm=view["near_cm"],
                far_cm=view["far_cm"],
            )
        )
    return tuple(found)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the true pixels; the whole of an empty mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return 0, 0, *mask.shape
    return rows[0], columns[0], rows[-1] + 1, columns[-1] + 1


def tinted(rgba: np.ndarray, tint: tuple[float, float, float], strength: float) -> np.ndarray:
    """`rgba` dyed: its brightness times `tint` (RGB in [0, 255]), mixed in with `strength`."""
    light = (rgba[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    dyed = light * np.array(tint, np.float32) * (1.25 / 255) + 8
    mixed = rgba[..., :3] * (1 - strength) + dyed * strength
    return np.concatenate([mixed.clip(0, 255).astype(np.uint8), rgba[..., 3:]], -1)


def main_colour(rgba: np.ndarray) -> np.ndarray:
    """Median RGB in [0, 255] of the opaque pixels."""
    solid = rgba[rgba[..., 3] > 128]
    return np.median(solid[:, :3], 0) if len(solid) else np.full(3, 128.0)
