"""Simulated people: three raters who score a scene, mark its flaws and choose among tries; and shoppers who click."""

import cv2
import numpy as np

from src.data.showroom.scene import Scene
from src.data.showroom.text import truths

RATERS = 3
SHARPNESS = 8  # of choices: chances are the softmax of so many times the utilities
DISC = 1 / 20  # radius of a marked point over the image's height (Rich Human Feedback, section 3)
WORST = {
    "available": 0.0, "space_mismatch": 0.75, "size_mismatch": 0.6, "indistinctiveness": 0.3,
    "shape_hallucination": 0.8,
}  # fmt: skip


def qualities(scene: Scene, label: str) -> np.ndarray:
    """Plausibility, alignment, aesthetics and overall quality, (4,) in [0, 1], before anyone judges them."""
    plausibility = 1 - WORST[label] * (0.4 + 0.6 * scene.severity)
    alignment = float(np.mean(truths(scene))) ** 2
    cosy = 0.1 * scene.rug + 0.1 * scene.picture + 0.08 * scene.window + 0.12 * (0 < len(scene.props) < 4)
    aesthetics = (
        0.5 + cosy + 0.15 * (scene.shadow - 0.7) - (0.35 * scene.severity if label == "indistinctiveness" else 0)
    )
    overall = 0.45 * plausibility + 0.25 * alignment + 0.3 * aesthetics
    return np.clip([plausibility, alignment, aesthetics, overall], 0, 1)


def scores(scene: Scene, label: str, rng: np.random.Generator) -> np.ndarray:
    """(4,) float32 in [0, 1]: the mean of three raters' five-point scores, each with a bias and noise of their own."""
    true = qualities(scene, label)
    bias = rng.normal(0, 0.06, (RATERS, 1))
    points = np.rint(1 + 4 * (true + bias + rng.normal(0, 0.09, (RATERS, 4)))).clip(1, 5)
    return ((points - 1) / 4).mean(0).astype(np.float32)


Marks = list[list[tuple[int, int]]]  # for each rater, the (column, row) of each point


def marks(flaw: np.ndarray, rng: np.random.Generator, noticed: float = 0.9) -> Marks:
    """The points that each rater marks on `flaw` (bool): one to three, or none if a rater misses it."""
    rows, columns = np.nonzero(flaw)
    picks = []
    for _ in range(RATERS):
        count = int(rng.integers(1, 4)) if len(rows) and rng.random() < noticed else 0
        picks.append([(int(columns[i]), int(rows[i])) for i in rng.integers(max(1, len(rows)), size=count)])
    return picks


def heat_map(points: Marks, size: int) -> np.ndarray:
    """(size, size) uint8: each rater's points as discs, averaged over raters: levels 0, 85, 170 and 255."""
    total = np.zeros((size, size), np.uint8)
    for mine in points:
        disc = np.zeros((size, size), np.uint8)
        for point in mine:
            cv2.circle(disc, point, round(size * DISC), 255 // RATERS, -1)
        total += disc
    return total


def aligned_words(scene: Scene, rng: np.random.Generator) -> list[int]:
    """1 for each word of the prompt that most raters find followed; a rater errs on one word in thirty."""
    true = np.array(truths(scene))
    votes = [np.where(rng.random(len(true)) < 1 / 30, 1 - true, true) for _ in range(RATERS)]
    return [int(v) for v in np.sum(votes, 0) * 2 > RATERS]


def ranking(utilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The ranks from 1 that a person gives a group: by utility under Gumbel noise, as in Plackett and Luce's model."""
    order = np.argsort(-(SHARPNESS * utilities + rng.gumbel(size=len(utilities))), kind="stable")
    return np.argsort(order) + 1


def click_rate(scene: Scene, overall: float) -> float:
    """Chance that a shopper clicks, in [0, 1]: quality, and a taste of the product's category for light and colour."""
    taste = np.random.default_rng(sum(scene.brief.item.name.encode())).normal(0, 1, 3)
    liking = taste @ (scene.setting.light == "warm", scene.window, len(scene.props) / 4)
    return float(1 / (1 + np.exp(3.0 - 3 * overall - 0.7 * liking)))
