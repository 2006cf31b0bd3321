"""Which rows train, validate and test: by a hash of the key, or by lists of keys."""

import re
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path

import numpy as np

from src.data.archive import Names

SPLITS = ("train", "val", "test")


def stamp(data: bytes) -> int:
    """A 64-bit number that depends on the bytes alone, the same on every machine."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def split_by_hash(
    keys: Names, rows: np.ndarray, val: float, test: float, pattern: str | None = None
) -> dict[str, np.ndarray]:
    """The `rows` of each split, shares `val` and `test` on average; a row's split depends on its key alone.

    pattern: a regular expression whose first group is hashed in the key's place, so that keys that share it (pictures
    of one product) share the split. Raises ValueError for a key in which it finds no group, and for impossible shares.
    """
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise ValueError(f"val={val}, test={test}: the shares must be at least 0 and leave rows to train on.")
    find = re.compile(pattern.encode()).search if pattern else None
    if find and not re.compile(pattern or "").groups:
        raise ValueError(f"split_pattern={pattern}: needs a group, as in ([^/]+)_\\d+.")

    def draw(row: int) -> float:
        key = keys.raw(row)
        match = find(key) if find else None
        if find and match is None:
            raise ValueError(f"split_pattern={pattern} does not fit the key '{keys[row]}'.")
        return stamp(match[1] if match else key) / 2**64

    draws = np.fromiter(map(draw, rows), np.float64, len(rows))
    cuts = np.searchsorted([test, test + val], draws, side="right")
    return {name: rows[cuts == cut] for name, cut in (("train", 2), ("val", 1), ("test", 0))}


def split_by_files(keys: Names, rows: np.ndarray, root: Path, files: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The `rows` whose keys the files list, one a line; a "train" without a file gets the rows that no file lists.

    Keys of rows that were dropped may be listed. Raises ValueError naming file, line and key for one that the data
    set never had and for one that is listed twice.
    """
    owner = np.full(len(keys), -1)
    for name, file in files.items():
        path = root / file
        if name not in SPLITS or not path.is_file():
            raise ValueError(f"split_files: {name}={path} is no file for one of {', '.join(SPLITS)}.")
        listed = Names(line.strip() for line in path.read_bytes().splitlines())
        for line, row in enumerate(keys.find(listed)):
            if not listed.raw(line):
                continue
            if row < 0 or owner[row] >= 0:
                what = f"is also in {SPLITS[owner[row]]}" if row >= 0 else "names no row, or several"
                raise ValueError(f"{path}, line {line + 1}: '{listed[line]}' {what}.")
            owner[row] = SPLITS.index(name)
    if "train" not in files:
        owner[owner < 0] = SPLITS.index("train")
    return {name: rows[owner[rows] == number] for number, name in enumerate(SPLITS)}
