"""Shape hallucination: what grows out of a product in its own texture."""

import cv2
import numpy as np

from src.data.showroom.canvas import Painting, Placed, blend, polygon, resize, window
from src.data.showroom.scene import Scene

LEAST = 0.08  # of the product's own area that must be seen of what it grows
TRIES = 8


def extend(
    painting: Painting, scene: Scene, product: Placed, thickness: float, depth: float, salience: float,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Paints what grows out of the product, behind it, as salient as itself: legs, a base, a handle or a twin.

    A plinth, an honest base of lacquer, is painted in the same way.
    """
    own = product.rgba[..., 3].astype(np.float32) / 255
    if not (own > 0.5).any():
        return
    best, most = np.zeros_like(product.rgba), -1.0
    for _ in range(TRIES):  # a growth that the product hides is no fault
        grown = _base(scene, product, thickness, rng) if thickness else _grown(scene, product, rng)
        seen = float((grown[..., 3] / 255 * (1 - own)).sum() / own.sum())
        if seen > most:
            best, most = grown, seen
        if most > LEAST:
            break
    blend(painting, best, 0, 0, depth, 0.2 if scene.plinth else salience)
    if not scene.plinth:
        painting.flaw = np.maximum(painting.flaw, best[..., 3] / np.float32(255) * (1 - own))


def _box(rgba: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the product."""
    rows, columns = np.flatnonzero((rgba[..., 3] > 128).any(1)), np.flatnonzero((rgba[..., 3] > 128).any(0))
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def _base(scene: Scene, product: Placed, thickness: float, rng: np.random.Generator) -> np.ndarray:
    """A slab or disc under the product."""
    rgba, side = product.rgba, product.rgba.shape[0]
    _, _, left, right = _box(rgba)
    wide = right - left + 1
    grown = np.zeros_like(rgba)
    half, lift = wide * rng.uniform(0.5, 0.62), max(3.0, wide * 0.13)
    centre = ((left + right) / 2, product.anchor[1])
    patch = _patch(rgba, side, side, rng) if not scene.plinth else _plinth(scene, side)
    slab = rng.random() < 0.5
    for step in range(int(thickness), -1, -1):
        tone = 0.72 if step else 1.06
        mask = np.zeros((side, side), np.uint8)
        y = centre[1] + step
        if slab:
            corners = ((-half, lift), (half, lift), (half * 0.86, -lift), (-half * 0.86, -lift))
            polygon(mask, [(centre[0] + a, y + b) for a, b in corners], 255)
        else:
            middle, axes = (round(centre[0] * 16), round(y * 16)), (round(half * 16), round(lift * 16))
            cv2.ellipse(mask, middle, axes, 0, 0, 360, 255, -1, cv2.LINE_AA, 4)
        on = mask > 0
        grown[on, :3] = (patch[on] * tone).clip(0, 255)
        grown[on, 3] = np.maximum(grown[on, 3], mask[on])
    return grown


def _grown(scene: Scene, product: Placed, rng: np.random.Generator) -> np.ndarray:
    """More legs, a twin, or a handle: an arc in the product's texture."""
    rgba, side = product.rgba, product.rgba.shape[0]
    top, bottom, left, right = _box(rgba)
    wide, high = right - left + 1, bottom - top + 1
    grown = np.zeros_like(rgba)
    sign = 1 if rng.random() < 0.5 else -1
    if scene.fault == "legs":
        strip = rgba[bottom - int(high * rng.uniform(0.28, 0.4)) : bottom + 1, left : right + 1]
        for _ in range(1 + int(rng.integers(1, 3))):
            shift = int(sign * wide * rng.uniform(0.12, 0.3 + 0.2 * scene.severity))
            longer = 1 + rng.uniform(0, 0.18)
            tall = max(2, int(strip.shape[0] * longer))
            piece = cv2.resize(strip, (strip.shape[1], tall), interpolation=cv2.INTER_LINEAR)
            _over(grown, piece, left + shift, bottom + 1 - strip.shape[0] - int(high * rng.uniform(0, 0.03)))
            sign = -sign
    elif scene.fault == "twin":
        shift = int(sign * wide * (0.16 + 0.24 * scene.severity))
        factor = rng.uniform(0.82, 1.0)
        piece = resize(rgba[top : bottom + 1, left : right + 1], max(2, int(wide * factor)), max(2, int(high * factor)))
        _over(grown, piece, left + shift + (wide - piece.shape[1]) // 2, bottom + 1 - piece.shape[0] - int(high * 0.03))
        grown[..., :3] = (grown[..., :3] * 0.9).astype(np.uint8)
    else:
        patch = _patch(rgba, side, side, rng)
        if rng.random() < 0.4:
            centre = ((left + right) // 2, top + int(0.03 * high))
            axes = (int(wide * rng.uniform(0.2, 0.35)), int(high * rng.uniform(0.14, 0.26)))
        else:
            centre = (right if sign > 0 else left, top + int(high * rng.uniform(0.35, 0.65)))
            axes = (int(wide * rng.uniform(0.16, 0.3)), int(high * rng.uniform(0.13, 0.25)))
        width = max(4, int(0.03 * side * (0.7 + 0.6 * scene.severity)))
        mask = np.zeros((side, side), np.uint8)
        cv2.ellipse(mask, centre, axes, 0, 0, 360, 255, width, cv2.LINE_AA)
        lit = np.roll(mask, 2, 0).astype(np.float32) - np.roll(mask, -2, 0)
        grown[..., :3] = (patch * 0.92 - lit[..., None] * 0.12).clip(0, 255)
        grown[..., 3] = mask
    return grown


def _patch(rgba: np.ndarray, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """A (height, width, 3) swatch of the product's own texture."""
    weight = cv2.blur((rgba[..., 3] > 200).astype(np.float32), (15, 15))
    y, x = np.unravel_index(int(weight.argmax()), weight.shape)
    swatch = rgba[max(0, y - 7) : y + 8, max(0, x - 7) : x + 8]
    colours = swatch[swatch[..., 3] > 200][:, :3]
    if not len(colours):
        colours = np.full((1, 3), 128, np.uint8)
    mean = colours.mean(0)
    grain = rng.normal(0, 0.5 * colours.std(0).mean() + 1.5, (max(2, height // 3), max(2, width // 10), 1))
    return (mean + cv2.resize(grain, (width, height))[..., None]).clip(0, 255).astype(np.uint8)


def _over(canvas: np.ndarray, piece: np.ndarray, left: int, top: int) -> None:
    meet = window(canvas.shape, piece.shape, left, top)
    if meet:
        there, here = meet
        on = piece[here][..., 3] > canvas[there][..., 3]
        canvas[there][on] = piece[here][on]


def _plinth(scene: Scene, side: int) -> np.ndarray:
    """A plinth of white or dark lacquer, whichever stands off from the product."""
    tone = 226 if sum(scene.brief.colour) < 420 else 70
    return np.full((side, side, 3), tone, np.uint8)
