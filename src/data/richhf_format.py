"""The files that `src.data.richhf` reads: names, features and encodings of the RichHF-18K release, read and written.

A folder has a TFRecord file for each split, the images by uid and a table of prompts; the last two are not part of the
release.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from src.data.images import SUFFIXES
from src.data.tables import TableReader
from src.data.tfrecord import serialize_example
from src.runtime.files import atomic

FILES = {"train": "train.tfrecord", "val": "dev.tfrecord", "test": "test.tfrecord"}  # of each split
IMAGES, PROMPTS = "images", "prompts.jsonl"
# In the order of SCORES and HEAT_MAPS. All scores are higher-is-better: two names suggest the opposite.
SCORE_FEATURES = ("artifact_score", "misalignment_score", "aesthetics_score", "overall_score")
MAP_FEATURES = ("artifact_map", "misalignment_map")
WORDS_FEATURE = "prompt_misalignment_label"  # "0 1 1": for each word of the prompt, 0 if it is misaligned


def uid(name: str) -> str:
    """The stem of an image file name; names without an image suffix are returned as they are."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def find_images(folder: Path) -> dict[str, str]:
    """The image files in a folder and those below it, by uid. Raises ValueError for two of one uid, and for none."""
    found: dict[str, str] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            if name.lower().endswith(SUFFIXES):
                file = os.path.join(place, name)
                if (other := found.setdefault(uid(name), file)) != file:
                    raise ValueError(f"{other} and {file} are both an image of {uid(name)}.")
    if not found:
        raise ValueError(f"{folder}: there are no images ({', '.join(SUFFIXES)}){parquet_hint(folder)}.")
    return found


def parquet_hint(folder: Path) -> str:
    """Advice for a folder of parquet files; "" for others."""
    there = any(folder.rglob("*.parquet"))
    return "; `python -m src.data.richhf_parquet` copies what is needed out of its parquet files" if there else ""


def read_prompts(path: Path) -> dict[str, str]:
    """The prompts of a table with key and prompt, by uid. Raises ValueError naming file and line of a bad row."""
    prompts: dict[str, str] = {}
    for line, cells, problem in TableReader(path, ("key", "prompt")):
        if not problem and prompts.setdefault(uid(cells["key"]), cells["prompt"]) != cells["prompt"]:
            problem = "an earlier line has another prompt for it"
        if problem:
            raise ValueError(f"{path}, line {line}, '{cells.get('key', '')}': {problem}.")
    return prompts


def write_prompts(path: Path, prompts: Mapping[str, str]) -> None:
    """The table that `read_prompts` reads."""
    lines = [json.dumps({"key": key, "prompt": prompt}) + "\n" for key, prompt in prompts.items()]
    with atomic(path) as part:
        part.write_text("".join(lines), encoding="utf-8")


def serialized(filename: str, maps: Sequence[bytes], scores: Sequence[float], words: str) -> bytes:
    """A record: encoded images in the order of HEAT_MAPS, scores in [0, 1] in that of SCORES, "0 1 1" for the words."""
    features = {"filename": [filename.encode()], WORDS_FEATURE: [words.encode()]}
    numbers = {name: [float(score)] for name, score in zip(SCORE_FEATURES, scores, strict=True)}
    return serialize_example({**features, **numbers, **{n: [m] for n, m in zip(MAP_FEATURES, maps, strict=True)}})


def png(values: np.ndarray) -> bytes:
    """A map, uint8 (height, width), as PNG."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()
