"""The files of people's choices among images of one prompt: HPD v1, HPD v2, Pick-a-Pic, ImageReward.

`FORMATS` has a function for each, from an entry of a file to a `Choice`. They raise ValueError with what is wrong.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from src.data.pickapic import labelled_pairs


class Choice(NamedTuple):
    """The entry `number`, from 1, of a file.

    images: two or more, as the file names them. chosen: their shares of the choices, 1 in sum. rank: 1 + the number of
    images that are preferred to this one.
    """

    prompt: str
    images: tuple[str, ...]
    chosen: tuple[float, ...]
    rank: tuple[int, ...]
    weight: float = 1.0
    file: Path = Path()
    number: int = 0


def read_choices(file: Path, form: str) -> Iterator[tuple[int, Choice | ValueError]]:
    """The number of each entry, from 1, with its choice or what is wrong with it; pairs without a label are left out.

    Raises ValueError if the file as a whole cannot be read.
    """
    for number, entry in labelled_pairs(file) if form == "pickapic" else _json_entries(file):
        try:
            yield number, FORMATS[form](entry)._replace(file=file, number=number)
        except ValueError as error:
            yield number, error


def hpd_v1(entry: dict[str, Any]) -> Choice:
    """`human_preference` is the index of the image that the user chose."""
    images, index = _images(entry, "file_path"), entry.get("human_preference")
    if type(index) is not int or not 0 <= index < len(images):
        raise ValueError(f"human_preference is {index!r}, not the index of one of {len(images)} images")
    return _choice(entry["prompt"], images, [number != index for number in range(len(images))])


def hpd_v2(entry: dict[str, Any]) -> Choice:
    """`human_preference` has a 1 for the preferred image, or (test) `rank` the rank of each, the least is the best."""
    if "rank" in entry:
        images = _images(entry, "image_path")
        return _choice(entry["prompt"], images, _numbers(entry, "rank", len(images)))
    images = _images(entry, "file_path")
    liked = _numbers(entry, "human_preference", len(images))
    if not set(liked) <= {0, 1} or 1 not in liked:
        raise ValueError(f"human_preference is {liked!r}, not of 0 and at least one 1")
    return _choice(entry["prompt"], images, [-value for value in liked])


def imagereward(entry: dict[str, Any]) -> Choice:
    """`ranking` has the rank of each of `generations`; ties are common, and the best need not be 1."""
    images = _images(entry, "generations")
    return _choice(entry["prompt"], images, _numbers(entry, "ranking", len(images)))


def pickapic(entry: dict[str, Any]) -> Choice:
    """`label_0` and `label_1` are the shares: 1 and 0, or 0.5 each for a tie. All pairs of a prompt weigh 1 in sum."""
    images = _images({**entry, "uids": [entry["image_0_uid"], entry["image_1_uid"]]}, "uids", "caption")
    shares = [entry["label_0"], entry["label_1"]]
    if not all(isinstance(share, float | int) and 0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"label_0 and label_1 are {shares[0]} and {shares[1]}, not shares with the sum 1")
    if type(count := entry["num_example_per_prompt"]) is not int or count < 1:
        raise ValueError(f"num_example_per_prompt is {count!r}, not a number from 1 on")
    choice = _choice(entry["caption"], images, [-share for share in shares])
    return choice._replace(chosen=tuple(map(float, shares)), weight=1 / count)


FORMATS = {"hpd_v1": hpd_v1, "hpd_v2": hpd_v2, "pickapic": pickapic, "imagereward": imagereward}


def _choice(prompt: str, images: tuple[str, ...], places: Sequence[float]) -> Choice:
    """places: less is better; those with the least share the choice."""
    best = min(places)
    chosen = tuple((place == best) / places.count(best) for place in places)
    return Choice(prompt, images, chosen, tuple(1 + sum(other < place for other in places) for place in places))


def _images(entry: dict[str, Any], name: str, prompt: str = "prompt") -> tuple[str, ...]:
    """The images of an entry, once its prompt is checked."""
    text, images = entry.get(prompt), entry.get(name)
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{prompt} is {text!r}, not a text")
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise ValueError(f"{name} is {images!r}, not a list of images; it has {', '.join(entry)}")
    if len(images) < 2:
        raise ValueError(f"{name} has {len(images) or 'no'} image{'s' * (not images)}: there is nothing to choose")
    "".join((text, *images)).encode()  # raises for half a character
    return tuple(images)


def _numbers(entry: dict[str, Any], name: str, count: int) -> list[float]:
    values = entry.get(name)
    if not isinstance(values, list) or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
        raise ValueError(f"{name} is {values!r}, not a list of numbers")
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} numbers for {count} images")
    return values


def _json_entries(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        entries = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: no JSON ({error}).") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{file}: not a list of objects.")
    return enumerate(entries, start=1)
