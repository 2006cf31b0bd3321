"""Aggregates the ratings of several raters to a data set for `data=richhf`: `python -m src.data.annotations TABLE OUT`.

As in "Rich Human Feedback for Text-to-Image Generation" (CVPR 2024, arXiv 2312.10240), section 3: discs around points,
means over raters, majority votes on words. OUT/agreement.json has the agreement of the raters.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.data.batch import HEAT_MAPS, SCORES
from src.data.images import BROKEN, SUFFIXES, opened, reason
from src.data.richhf_format import FILES, IMAGES, PROMPTS, png, serialized, uid, write_prompts
from src.data.splits import stamp
from src.data.tfrecord import write_tfrecord
from src.data.words import split_words
from src.runtime.command import example_command
from src.runtime.files import new_folder, write_json

RADIUS = 1 / 20  # of a disc, over the image's height
POINTS = ("points_implausible", "points_misaligned")  # in the order of HEAT_MAPS
LIKERT = (1, 5)
Points = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Rating:
    """What one rater says of an image: points (x, y) in px from its top left corner for each of HEAT_MAPS; the numbers,
    from 0, of the misaligned among `split_words(prompt)`; 1 to 5 for each of SCORES, 5 is best.
    """

    image: str
    prompt: str
    rater: str
    points: tuple[Points, ...]
    misaligned: Sequence[int]
    scores: tuple[int, ...]


def disc_map(points: Points, width: int, height: int) -> np.ndarray:
    """(height, width) bool: the pixels whose centers are within RADIUS * height of a point."""
    y, x = np.mgrid[:height, :width] + 0.5
    found = np.zeros((height, width), bool)
    for across, down in points:
        found |= (x - across) ** 2 + (y - down) ** 2 <= (RADIUS * height) ** 2
    return found


def heat_map(points_of_raters: Sequence[Points], width: int, height: int) -> np.ndarray:
    """(height, width) float in [0, 1]: the share of the raters with a disc there."""
    return np.mean([disc_map(points, width, height) for points in points_of_raters], axis=0)


def aligned_words(misaligned: Sequence[Sequence[int]], count: int) -> list[int]:
    """For each of `count` words 0 (misaligned) if more than half of the raters mark it, else 1; a tie is 1."""
    votes = np.zeros(count, int)
    for marked in misaligned:
        votes[list(marked)] += 1
    return [int(2 * vote <= len(misaligned)) for vote in votes]


def normalized(scores: Sequence[Sequence[int]]) -> np.ndarray:
    """(4,) in [0, 1]: (mean over raters - 1) / 4, of scores (raters, 4) from 1 to 5."""
    low, high = LIKERT
    return (np.mean(scores, axis=0) - low) / (high - low)


def agreement(scores_of_images: Sequence[Sequence[Sequence[int]]]) -> dict[str, dict[str, Any]]:
    """For each score: `images`, those with two or more raters; `histogram`, the share of them with maxdiff, the largest
    minus the smallest score over 4, of 0, 0.25, ... 1; `within_0.25`, the share of at most one step (the paper: 85 %).
    """
    low, high = LIKERT
    several = [np.ptp(scores, axis=0) for scores in scores_of_images if len(scores) > 1]
    steps = np.array(several, int).reshape(-1, len(SCORES))
    found = {}
    for name, column in zip(SCORES, steps.T, strict=True):
        shares = np.bincount(column, minlength=high - low + 1) / max(1, len(column))
        histogram = {f"{step / (high - low):g}": float(share) for step, share in enumerate(shares)}
        found[name] = {"images": len(column), "histogram": histogram, "within_0.25": float(shares[:2].sum())}
    return found


def read_ratings(table: Path) -> dict[str, list[Rating]]:
    """The ratings of each image of a JSON-lines table.

    A line has image (a path, relative to the table), prompt, rater, points_implausible and points_misaligned
    ([[x, y], ...] in px), words_misaligned (numbers from 0 of the prompt's words, cut at , . ? ! " : ; and spaces) and
    the scores plausibility, alignment, aesthetics, overall (1 to 5).

    Raises ValueError naming file, line and value for a line that is not of this form, another prompt of an image, a
    rater's second rating of it.
    """
    if not table.is_file():
        raise ValueError(f"{table}: file not found.")
    found: dict[str, list[Rating]] = {}
    with table.open("rb") as file:
        for line, text in enumerate(file, 1):
            if text.strip():
                try:
                    rating = _rating(json.loads(text))
                    others = found.setdefault(rating.image, [])
                    if any(other.rater == rating.rater for other in others):
                        raise ValueError(f"a second rating of '{rating.image}' by '{rating.rater}'")
                    if others and others[0].prompt != rating.prompt:
                        raise ValueError(f"'{rating.image}' has the prompt {others[0].prompt!r} before")
                except ValueError as error:
                    raise ValueError(f"{table}, line {line}: {error}.") from None
                others.append(rating)
    if not found:
        raise ValueError(f"{table}: there are no ratings.")
    return found


def _rating(row: Any) -> Rating:
    if not isinstance(row, dict):
        raise ValueError(f"{row!r} is not a JSON object")
    if missing := [
        name for name in ("image", "prompt", "rater", *POINTS, "words_misaligned", *SCORES) if name not in row
    ]:
        raise ValueError(f"there is no {', '.join(missing)}")
    for name in ("image", "prompt", "rater"):
        if not isinstance(row[name], str) or not row[name].strip():
            raise ValueError(f"{name} is {row[name]!r}, not a text")
    for name in POINTS:
        if not isinstance(row[name], list) or not all(_is_point(point) for point in row[name]):
            raise ValueError(f"{name} is {row[name]!r}, not a list of [x, y]")
    numbers, count = row["words_misaligned"], len(split_words(row["prompt"]))
    if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < count for n in numbers):
        raise ValueError(f"words_misaligned is {numbers!r}, not a list of numbers from 0 to {count - 1}")
    for name in SCORES:
        if type(row[name]) is not int or not LIKERT[0] <= row[name] <= LIKERT[1]:
            raise ValueError(f"{name} is {row[name]!r}, not a whole number from 1 to 5")
    points, scores = tuple(row[name] for name in POINTS), tuple(row[name] for name in SCORES)
    return Rating(row["image"], row["prompt"], row["rater"], points, sorted(set(numbers)), scores)


def _is_point(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(type(v) in (int, float) and np.isfinite(v) for v in value)
    )


def aggregate(table: str, out: str, val: float = 0.1, test: float = 0.1) -> Path:
    """Writes the folder `out` with images, heat maps, scores and words of a table of ratings (`read_ratings`).

    val, test: shares of the prompts, chosen by their hash; images of one prompt share the split. Raises ValueError for
    an image that is missing or damaged, two images of one stem, and points outside of their image.
    """
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise ValueError(f"val={val}, test={test}: the shares must be at least 0 and leave rows to train on.")
    ratings, root = read_ratings(Path(table)), new_folder(out)
    (root / IMAGES).mkdir()
    records: dict[str, list[bytes]] = {split: [] for split in FILES}
    places: dict[str, str] = {}
    for name, some in ratings.items():
        source = Path(table).parent / name
        if (other := places.setdefault(uid(source.name), name)) != name:
            raise ValueError(f"{table}: '{other}' and '{name}' have the same stem; stems must be unique.")
        if source.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{table}: '{name}' is none of {', '.join(SUFFIXES)}.")
        width, height = _size(source)
        for rating in some:
            for x, y in (point for points in rating.points for point in points):
                if not (0 <= x <= width and 0 <= y <= height):
                    raise ValueError(
                        f"{table}: '{rating.rater}' marks [{x}, {y}] in '{name}', which is {width}x{height}."
                    )
        maps = [heat_map([rating.points[i] for rating in some], width, height) for i in range(len(HEAT_MAPS))]
        labels = aligned_words([rating.misaligned for rating in some], len(split_words(some[0].prompt)))
        draw = stamp(some[0].prompt.encode()) / 2**64
        split = "test" if draw < test else "val" if draw < test + val else "train"
        encoded = [png(np.rint(255 * values).astype(np.uint8)) for values in maps]
        scores = normalized([rating.scores for rating in some]).tolist()
        records[split].append(serialized(f"{split}/{source.name}", encoded, scores, " ".join(map(str, labels))))
        shutil.copyfile(source, root / IMAGES / source.name)
    for split, some in records.items():
        if some:
            write_tfrecord(root / FILES[split], some)
    write_prompts(root / PROMPTS, {uid(Path(name).name): some[0].prompt for name, some in ratings.items()})
    write_json(root / "agreement.json", agreement([[r.scores for r in some] for some in ratings.values()]))
    return root


def _size(image: Path) -> tuple[int, int]:
    try:
        return opened(image.read_bytes(), "image").size
    except BROKEN as error:
        raise ValueError(f"{image}: {reason(error)}.") from None


if __name__ == "__main__":
    sys.exit(example_command("src.data.annotations", aggregate))
