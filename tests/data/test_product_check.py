"""What the check says about a disc whose color, edge and place are known."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.product_check import BACKDROP, BORDER, HALO, suspicions, warnings_of

RED = (200, 60, 40)


def disc(color=RED, hidden=(0, 0, 0), soft=3.0, centre=(64, 64), size=128) -> np.ndarray:
    """A disc of radius 40 with straight alpha and an edge of `soft` px."""
    y, x = np.mgrid[:size, :size]
    alpha = np.clip((40 - np.hypot(x - centre[0], y - centre[1])) / soft + 0.5, 0, 1)
    image = np.zeros((size, size, 4), np.uint8)
    image[..., :3] = np.where(alpha[..., None] > 0, color, hidden)
    image[..., 3] = np.round(alpha * 255)
    return image


def mixed(image: np.ndarray, value: int) -> np.ndarray:
    """With soft edges mixed with a gray value."""
    a = image[..., 3:] / 255
    colors = np.round(image[..., :3] * a + value * (1 - a))
    return np.concatenate([colors.astype(np.uint8), image[..., 3:]], axis=2)


def test_edges_mixed_with_black_or_white_are_told_and_straight_ones_are_not():
    assert suspicions(disc()) == []
    assert suspicions(disc(soft=0.1)) == []
    assert suspicions(mixed(disc(), 0)) == [HALO.format("black")]
    assert suspicions(mixed(disc(), 255)) == [HALO.format("white")]
    assert suspicions(mixed(disc(color=(12, 10, 8)), 0)) == []  # no rim is seen
    noise = np.random.default_rng(0).normal(0, 15, (128, 128, 3))
    textured = disc()
    textured[..., :3] = np.clip(textured[..., :3] + noise, 0, 255)
    assert suspicions(textured) == []
    assert suspicions(mixed(textured, 0)) == [HALO.format("black")]
    assert suspicions(mixed(disc(), 0).repeat(12, 0).repeat(12, 1)) == [HALO.format("black")]  # 1536 px


def test_a_filled_hole_is_told_in_white_or_in_the_color_under_transparent_pixels():
    y, x = np.mgrid[:128, :128]
    hole = np.hypot(x - 64, y - 64) < 15
    ring = disc()
    ring[hole, :3] = 253
    assert suspicions(ring) == [BACKDROP]
    spot = disc()
    spot[62:65, 62:65, :3] = 255
    assert suspicions(spot) == []  # a highlight
    assert suspicions(disc(color=(255, 255, 255))) == []  # a white product
    ring = disc(hidden=(90, 150, 90))
    ring[hole, :3] = (92, 149, 91)
    ring[0, 0, :3] = (91, 150, 90)  # the pixels of a photograph are not all the same
    assert suspicions(ring) == [BACKDROP]


@pytest.mark.parametrize(("centre", "told"), [((30, 64), [BORDER]), ((64, 100), [BORDER]), ((41, 64), [])])
def test_a_product_that_leaves_its_image_is_told(centre, told):
    assert suspicions(disc(centre=centre)) == told


def test_a_folder_has_one_line_for_each_suspicion(tmp_path: Path):
    for number in range(7):
        Image.fromarray(mixed(disc(), 0)).save(tmp_path / f"p{number}.png")
    Image.fromarray(disc(centre=(30, 64))).save(tmp_path / "q.png")
    (tmp_path / "torn.png").write_bytes(b"no image")
    halo, border = warnings_of(sorted(tmp_path.iterdir()))
    assert halo == f"{HALO.format('black')}: p0.png, p1.png, p2.png, p3.png, p4.png, ... (7 of 9 products)."
    assert border == f"{BORDER}: q.png (1 of 9 products)."
