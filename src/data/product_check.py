"""What is suspicious about cut-out products, before images are generated around them. These are guesses, not errors."""

import math
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from src.data.images import BROKEN, VISIBLE, in_mode, opened

SIDE = 1024  # px, to which larger products are thinned out
SOFT, SOLID = (32, 224), 250  # alpha of soft edges and of pixels that are the product alone
REACH = 7  # px, window in which the colors of a soft pixel and of the product are compared
LEAST_SOFT = 20  # pixels of soft edges, below which they are not judged
LEAST_ERROR = 10  # of 255: mean difference between the colors of edges and product from which they are judged
TOUCH = 0.1  # share of a side of the image that the product covers
NEAR = 10  # of 255, from the color of the backdrop
REGION = (0.005, 0.5)  # of the product's area: smaller regions are spots, larger ones are the product
SHOWN = 5  # files named in a line
HALO = "soft edges mixed with {} (premultiplied or not cleaned); they show as a rim around the product"
BACKDROP = "opaque regions in the color of the backdrop, such as filled holes"
BORDER = "the product touches the border of its image, and may be cut off"


def warnings_of(files: Iterable[Path]) -> list[str]:
    """One line for each suspicion, with the names of the products. Files that cannot be read are left out."""
    found: dict[str, list[str]] = {}
    count = 0
    for file in files:
        count += 1
        try:
            image = in_mode(opened(file.read_bytes(), "product"), "RGBA")
        except BROKEN:
            continue
        for suspicion in suspicions(np.asarray(image)):
            found.setdefault(suspicion, []).append(file.name)
    return [
        f"{what}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''} ({len(names)} of {count} products)."
        for what, names in found.items()
    ]


def suspicions(product: np.ndarray) -> list[str]:
    """The suspicions about a product, uint8 (height, width, 4) with straight alpha.

    - Soft edges whose colors are those of the product next to them, mixed with black or white by their alpha.
    - Opaque regions that are white, or of the color under the transparent pixels if they show a plain backdrop.
    - A border of the image that the product covers by more than `TOUCH`.
    """
    step = math.ceil(max(product.shape) / SIDE)
    product = np.ascontiguousarray(product[::step, ::step])
    found = [HALO.format(matte)] if (matte := _matte(product)) else []
    if _has_backdrop(product):
        found.append(BACKDROP)
    visible = product[..., 3] >= VISIBLE
    if max(side.mean() for side in (visible[0], visible[-1], visible[:, 0], visible[:, -1])) > TOUCH:
        found.append(BORDER)
    return found


def _matte(product: np.ndarray) -> str:
    """The color, "black" or "white", that soft edges are mixed with; "" if there is none."""
    colors, alpha = product[..., :3].astype(np.float32), product[..., 3]
    solid = (alpha >= SOLID).astype(np.float32)
    counts = cv2.blur(solid, (REACH, REACH), borderType=cv2.BORDER_CONSTANT)
    sums = cv2.blur(colors * solid[..., None], (REACH, REACH), borderType=cv2.BORDER_CONSTANT)
    soft = (alpha >= SOFT[0]) & (alpha <= SOFT[1]) & (counts > 0.5 / REACH**2)
    if soft.sum() < LEAST_SOFT:
        return ""
    own, told, a = sums[soft] / counts[soft][:, None], colors[soft], alpha[soft][:, None] / 255
    straight = np.abs(told - own).mean()
    mixed = {"black": a * own, "white": a * own + (1 - a) * 255}
    errors = {name: np.abs(told - guess).mean() for name, guess in mixed.items()}
    best = min(errors, key=errors.__getitem__)
    return best if straight > LEAST_ERROR and errors[best] < straight / 2 else ""


def _has_backdrop(product: np.ndarray) -> bool:
    colors, alpha = product[..., :3].astype(np.int16), product[..., 3]
    backdrops, hidden = [np.full(3, 255)], colors[alpha == 0]
    if len(hidden) and np.ptp(hidden, axis=0).any():  # a single color may be what the tool has filled in
        middle = np.median(hidden, axis=0)
        if (np.abs(hidden - middle).max(axis=1) <= NEAR).mean() > 0.5:
            backdrops.append(middle)
    solid = alpha >= SOLID
    for backdrop in backdrops:
        near = solid & (np.abs(colors - backdrop).max(axis=2) <= NEAR)
        areas = cv2.connectedComponentsWithStats(near.astype(np.uint8), connectivity=4)[2][1:, cv2.CC_STAT_AREA]
        shares = areas / max(1, solid.sum())
        if ((shares >= REGION[0]) & (shares <= REGION[1])).any():
            return True
    return False
