"""Rooms: named styles, held out by split, and the procedural textures of their walls, floors and table tops."""

import functools
from dataclasses import dataclass

import cv2
import numpy as np

COLOURS = {  # sRGB, [0, 255]
    "white": (238, 236, 230), "cream": (233, 221, 194), "beige": (212, 194, 164), "grey": (166, 168, 170),
    "charcoal": (82, 84, 90), "sage": (163, 178, 149), "green": (86, 122, 92), "teal": (62, 122, 128),
    "sky blue": (164, 196, 214), "navy": (52, 70, 106), "blush": (224, 188, 180), "terracotta": (190, 108, 78),
    "red": (164, 58, 54), "ochre": (204, 158, 76), "yellow": (232, 206, 108), "lavender": (186, 174, 206),
    "brown": (124, 88, 62), "black": (44, 44, 46),
}  # fmt: skip
MATERIALS = {  # floor and table materials: (pattern, main colour, second colour)
    "oak": ("planks", (190, 152, 108), (150, 112, 74)),
    "walnut": ("planks", (122, 84, 58), (88, 58, 40)),
    "bleached wood": ("planks", (214, 198, 174), (180, 162, 138)),
    "parquet": ("herringbone", (178, 132, 88), (136, 96, 62)),
    "concrete": ("plaster", (164, 164, 162), (138, 138, 138)),
    "marble": ("marble", (230, 230, 228), (150, 152, 158)),
    "slate": ("tiles", (98, 104, 110), (70, 74, 80)),
    "tiled": ("tiles", (216, 210, 200), (172, 166, 158)),
    "checkered": ("checks", (228, 224, 214), (70, 72, 76)),
    "terrazzo": ("terrazzo", (222, 214, 204), (158, 112, 92)),
    "carpeted": ("carpet", (176, 166, 158), (150, 140, 132)),
    "linen": ("carpet", (222, 214, 200), (200, 190, 174)),
}


@dataclass(frozen=True)
class Style:
    """A way to furnish: what its walls, floors and tables may be, and the split that may see it."""

    split: str
    walls: tuple[str, ...]
    patterns: tuple[str, ...]
    floors: tuple[str, ...]
    tables: tuple[str, ...]


STYLES = {
    "minimalist": Style("train", ("white", "grey", "beige"), ("plain",), ("concrete", "bleached wood"),
        ("concrete", "bleached wood")),
    "scandinavian": Style("train", ("white", "sage", "sky blue"), ("plain", "panelled"),
        ("oak", "bleached wood"), ("oak", "bleached wood")),
    "classic": Style("train", ("cream", "navy", "green"), ("panelled", "striped"), ("parquet", "carpeted"),
        ("walnut", "marble")),
    "modern": Style("train", ("grey", "charcoal", "teal"), ("plain", "tiled"), ("slate", "oak"), ("slate", "marble")),
    "bohemian": Style("train", ("terracotta", "ochre", "blush"), ("plain", "papered"), ("oak", "carpeted"),
        ("oak", "linen")),
    "retro": Style("train", ("yellow", "teal", "red"), ("papered", "striped"), ("checkered", "walnut"),
        ("walnut", "terrazzo")),
    "nursery": Style("train", ("lavender", "blush", "sky blue"), ("papered", "plain"),
        ("carpeted", "bleached wood"), ("bleached wood", "linen")),
    "rustic": Style("train", ("cream", "brown", "white"), ("boarded", "plain"), ("walnut", "tiled"),
        ("walnut", "oak")),
    "industrial": Style("train", ("red", "grey", "charcoal"), ("brick", "plain"), ("concrete", "walnut"),
        ("concrete", "walnut")),
    "farmhouse": Style("val", ("white", "sage", "cream"), ("boarded",), ("oak", "slate"), ("oak", "linen")),
    "japandi": Style("val", ("beige", "charcoal", "sage"), ("plain",), ("bleached wood", "carpeted"),
        ("bleached wood", "slate")),
    "loft": Style("test", ("red", "white", "grey"), ("brick",), ("parquet", "concrete"), ("marble", "walnut")),
    "coastal": Style("test", ("sky blue", "white", "teal"), ("boarded", "striped"), ("bleached wood", "tiled"),
        ("linen", "tiled")),
    "mediterranean": Style("test", ("ochre", "white", "terracotta"), ("plain", "tiled"), ("terrazzo", "tiled"),
        ("terrazzo", "tiled")),
}  # fmt: skip
PATTERNS = tuple(dict.fromkeys(p for style in STYLES.values() for p in style.patterns))
LIGHTS = {"warm": (1.06, 1.0, 0.9), "soft": (1.0, 1.0, 1.0), "cool": (0.94, 1.0, 1.07)}
SIDE = 512  # pixels of a texture
EXTENT = 240.0  # cm that a texture covers before it repeats


def _noise(rng: np.random.Generator, cells: tuple[int, int], side: int = SIDE) -> np.ndarray:
    """Smooth noise in about [-1, 1] that tiles; `cells` (down, across) sets its grain."""
    grid = rng.uniform(-1, 1, cells).astype(np.float32)
    grid = np.pad(grid, ((2, 2), (2, 2)), mode="wrap")
    down, across = side // cells[0], side // cells[1]
    large = cv2.resize(grid, (across * (cells[1] + 4), down * (cells[0] + 4)), interpolation=cv2.INTER_CUBIC)
    return cv2.resize(large[2 * down : -2 * down, 2 * across : -2 * across], (side, side))


def _tiles(
    side_cm: float, joint_cm: float, offset: bool, height_cm: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row and column number of each pixel's tile and whether the pixel is a joint."""
    high = height_cm or side_cm
    rows = max(2, round(EXTENT / high / 2) * 2)
    columns = max(1, round(EXTENT / side_cm))
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    row = np.floor(y * rows).astype(int)
    across = x * columns + (0.5 * (row % 2) if offset else 0)
    column = np.floor(across).astype(int) % columns
    fy, fx = y * rows - row, across - np.floor(across)
    joint = (fy < joint_cm / (EXTENT / rows)) | (fx < joint_cm / (EXTENT / columns))
    return row, column, joint


@functools.cache
def texture(pattern: str) -> tuple[np.ndarray, ...]:
    """A mip pyramid of (side, side, 2) uint8: brightness (128 leaves it) and share of the second colour."""
    rng = np.random.default_rng(sum(pattern.encode()))
    y, x = np.mgrid[0:SIDE, 0:SIDE] * (EXTENT / SIDE)
    fine = _noise(rng, (128, 128))
    light, mix = 0.02 * fine, np.zeros((SIDE, SIDE), np.float32)
    if pattern in ("plain", "plaster"):
        light = 0.015 * fine + 0.03 * _noise(rng, (8, 8)) + 0.02 * _noise(rng, (32, 32))
        mix = (0.5 + 0.5 * _noise(rng, (16, 16))).clip(0, 1) * (0.8 if pattern == "plaster" else 0.0)
    elif pattern in ("planks", "boarded"):
        row, column, joint = _tiles(120, 0.7, True, 12 if pattern == "planks" else 15)
        shade = rng.uniform(-1, 1, (row.max() + 1, column.max() + 1))[row, column]
        grain = _noise(rng, (256, 4)) + 0.6 * _noise(rng, (256, 16))
        wood = pattern == "planks"
        light = (0.07 * shade + 0.05 * grain if wood else 0.012 * shade + 0.012 * grain) - 0.28 * joint
        mix = (0.35 + 0.4 * shade + 0.15 * grain).clip(0, 1) if wood else mix
    elif pattern == "herringbone":
        band = np.floor(x / 20).astype(int)
        along = np.where(band % 2 == 0, y + x, y - x)
        board = np.floor(along / 10).astype(int) % 24
        shade = rng.uniform(-1, 1, (24, band.max() + 1))[board, band]
        joint = (along % 10 < 0.7) | (x % 20 < 0.7)
        light = 0.06 * shade + 0.03 * _noise(rng, (64, 64)) - 0.22 * joint
        mix = (0.4 + 0.45 * shade).clip(0, 1)
    elif pattern in ("tiles", "tiled"):
        row, column, joint = _tiles(40 if pattern == "tiles" else 15, 0.8, False)
        light = 0.03 * rng.uniform(-1, 1, (row.max() + 1, column.max() + 1))[row, column] + 0.01 * fine
        mix = joint.astype(np.float32)
        light = light - (0.1 * joint if pattern == "tiled" else 0)
    elif pattern == "brick":
        row, column, joint = _tiles(24, 1.2, True, 8)
        light = 0.1 * rng.uniform(-1, 1, (row.max() + 1, column.max() + 1))[row, column] + 0.05 * _noise(rng, (64, 64))
        light = np.where(joint, 0.12, light)
        mix = 0.55 * joint
    elif pattern == "checks":
        row, column, _ = _tiles(30, 0, False)
        mix = ((row + column) % 2).astype(np.float32)
    elif pattern == "striped":
        light = light + np.where(x % 20 < 10, 0.05, -0.06)
    elif pattern == "papered":
        shift = (np.floor(y / 12) % 2) * 6
        dot = ((x + shift) % 12 - 6) ** 2 + (y % 12 - 6) ** 2
        light = light + np.where(dot < 5, 0.16, 0) - np.where((dot > 9) & (dot < 12), 0.06, 0)
    elif pattern == "panelled":
        inner = np.maximum(abs(x % 60 - 30), abs(y % 80 - 40) - 10)
        light = light + np.where((inner > 22) & (inner < 23.2), 0.12, 0)
        light = light - np.where((inner > 23.2) & (inner < 24.6), 0.16, 0)
    elif pattern == "marble":
        bend = 2.2 * _noise(rng, (4, 4)) + 0.8 * _noise(rng, (16, 16))
        x = np.mgrid[0:SIDE, 0:SIDE][1] / SIDE
        vein = np.exp(-8 * abs(np.sin(np.pi * (4 * x + bend))))
        mix = (0.55 * vein + 0.1 * _noise(rng, (8, 8))).clip(0, 1)
    elif pattern == "terrazzo":
        chips = _noise(rng, (64, 64)) + 0.3 * _noise(rng, (128, 128))
        mix = (chips > 0.55).astype(np.float32)
        light = 0.1 * (chips < -0.6) + 0.01 * fine
    elif pattern == "carpet":
        light = 0.06 * rng.uniform(-1, 1, (SIDE, SIDE)).astype(np.float32) + 0.04 * _noise(rng, (64, 64))
        mix = (0.5 + 0.4 * _noise(rng, (32, 32))).clip(0, 1)
    else:
        raise ValueError(f"no texture {pattern!r}")
    pixels = np.stack([128 * (1 + light), 255 * mix], -1).clip(0, 255).astype(np.uint8)
    pyramid: list[np.ndarray] = [pixels]
    while pyramid[-1].shape[0] > 16:
        side = pyramid[-1].shape[0] // 2
        pyramid.append(cv2.resize(pyramid[-1], (side, side), interpolation=cv2.INTER_AREA))
    return tuple(pyramid)
