"""The canvas that a scene is painted on, and how an image is put on it."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from src.data.showroom.camera import Camera
from src.data.showroom.sprites import View


@dataclass
class Painting:
    """A scene in the making; `depth` is in cm along the optical axis."""

    image: np.ndarray  # (side, side, 3) float32, RGB in [0, 255], oversampled
    depth: np.ndarray  # (side, side) float32, oversampled
    support: np.ndarray  # (side, side) float32 in [0, 1]: where floor or table top is seen
    salient: np.ndarray  # (side, side) float32 in [0, 1]
    camera: Camera
    flaw: np.ndarray  # (side, side) float32 in [0, 1]: where the fault is seen


@dataclass(frozen=True)
class Placed:
    """The product on the oversampled canvas."""

    rgba: np.ndarray  # (side, side, 4) uint8, straight alpha
    zoom: float  # canvas pixels per sprite pixel
    left: int
    top: int
    anchor: tuple[float, float]  # column, row of the point it stands on
    view: View


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resized with antialiasing; RGBA through premultiplied alpha, so that no dark rim appears."""
    way = cv2.INTER_AREA if width < pixels.shape[1] else cv2.INTER_LINEAR
    if pixels.ndim == 2 or pixels.shape[2] != 4:
        return cv2.resize(pixels, (width, height), interpolation=way)
    weighted = pixels.astype(np.float32)
    share = weighted[..., 3] / 255
    weighted *= cv2.merge((share, share, share, np.ones_like(share)))  # far quicker than numpy's broadcasting
    weighted = cv2.resize(weighted, (width, height), interpolation=way)
    back = 255 / np.maximum(weighted[..., 3], 1)
    weighted *= cv2.merge((back, back, back, np.ones_like(back)))
    weighted += 0.5
    return weighted.clip(0, 255, out=weighted).astype(np.uint8)


def spread(values: np.ndarray) -> np.ndarray:
    """(height, width) repeated to three channels."""
    return cv2.merge((values, values, values))


def window(
    shape: tuple[int, ...], small: tuple[int, ...], left: int, top: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """Slices of a canvas and of a smaller image put on it at (left, top); None where they do not meet."""
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + small[0], shape[0]), min(left + small[1], shape[1])
    if y1 <= y0 or x1 <= x0:
        return None
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def paste(canvas: np.ndarray, small: np.ndarray, left: int, top: int) -> None:
    meet = window(canvas.shape, small.shape, left, top)
    if meet:
        canvas[meet[0]] = small[meet[1]]


def standing_out(behind: np.ndarray, rgba: np.ndarray, most: float = 1.0) -> float:
    """How much a thing stands out from what it covers, in [0.15, `most`]: its mean contrast, 1 from 55 grey levels on.

    `behind` (height, width, 3) and `rgba` (height, width, 4) are in [0, 255].
    """
    alpha = rgba[..., 3].astype(np.float32)
    difference = np.abs(rgba[..., :3] - behind)
    contrast = float((difference * spread(alpha)).sum() / max(3 * float(alpha.sum()), 1.0)) / 55
    return max(0.15, min(1.0, contrast) * most)


def polygon(image: np.ndarray, points: Any, colour: Any) -> None:
    """Fills the convex polygon with these corners (column, row), with antialiasing."""
    corners = np.round(np.array(points).clip(-4e3, 4e3) * 16).astype(np.int32)
    cv2.fillConvexPoly(image, corners, colour, cv2.LINE_AA, 4)


def blend(
    painting: Painting, rgba: np.ndarray, left: int, top: int, depth: float, salience: float | None = None
) -> np.ndarray | None:
    """Lays `rgba` over the painting; returns its alpha on the canvas' window, for the caller's own maps.

    Without `salience` it stands out half as much as a product would.
    """
    meet = window(painting.image.shape, rgba.shape, left, top)
    if meet is None:
        return None
    there, here = meet
    alpha = rgba[here][..., 3].astype(np.float32) / 255
    part = painting.image[there]
    if salience is None:
        salience = standing_out(part, rgba[here], 0.5)
    part += (rgba[here][..., :3] - part) * spread(alpha)
    solid = alpha > 0.5
    painting.depth[there][solid] = np.minimum(painting.depth[there][solid], depth)  # what covers is not behind
    mark = painting.salient[there]
    mark += (salience - mark) * alpha
    return alpha
