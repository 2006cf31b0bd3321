"""Data sets and their splits: the interface, and which rows train, validate and test (a hash of the key, or lists)."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from src.data.archive import match
from src.data.batch import Record

SPLITS = ("train", "val", "test")


class Split(Dataset, ABC):
    """The records of one split, by index; a record depends on its index alone."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int, /) -> Record: ...

    @property
    def groups(self) -> np.ndarray:
        """The group of every record, int64 (records,), without reading the records; if they have the field `group`."""
        raise NotImplementedError

    def keys(self) -> list[str]:
        """The key of every record."""
        return [self[index]["key"] for index in range(len(self))]

    def state(self, index: int) -> str:
        """Changes whenever the files of record `index` do; here it has none."""
        return ""

    def unfitted(self, index: int, maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Maps (height, width) of the image of record `index`, in the shape of its file; here the record's own."""
        return maps


class Source(ABC):
    """A data set: the fields that all its records have, the names of its classes, and its splits.

    about: what the records are, and whether they are synthetic (default: the docstring); licence: of what is trained on
    them. Both go into model cards. If `group` is a field, a system that needs it gets whole groups.
    """

    fields: frozenset[str]
    classes: tuple[str, ...]
    about: str = ""
    licence: str = "Apache-2.0"

    @abstractmethod
    def split(self, name: str) -> Split:
        """The records of "train", "val" or "test"."""

    def fingerprint(self) -> str:
        """Changes whenever the records do, wherever they lie; here they depend on the settings alone."""
        return ""


def digest(parts: Iterable[bytes | str]) -> str:
    """A hash of the parts in their order."""
    found = blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode(errors="surrogatepass")
        found.update(len(data).to_bytes(8, "little") + data)
    return found.hexdigest()


def stamp(data: bytes) -> int:
    """A 64-bit number that depends on the bytes alone, the same on every machine."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def split_by_hash(
    keys: np.ndarray, rows: np.ndarray, val: float, test: float, pattern: str | None = None
) -> dict[str, np.ndarray]:
    """The `rows` of each split, shares `val` and `test` on average; a row's split depends on its key alone.

    pattern: a regular expression whose first group is hashed instead of the key, so that keys that share it (images of
    one product) share the split. Raises ValueError for a key in which it finds no group, and for impossible shares.
    """
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise ValueError(f"val={val}, test={test}: the shares must be at least 0 and leave rows to train on.")
    try:
        find = re.compile(pattern.encode()) if pattern else None
    except re.error as error:
        raise ValueError(f"split_pattern={pattern}: not a regular expression: {error}.") from None
    if find and not find.groups:
        raise ValueError(f"split_pattern={pattern}: needs a group, as in ([^/]+)_\\d+.")

    def draw(row: int) -> float:
        key = bytes(keys[row])
        match = find.search(key) if find else None
        if find and match is None:
            raise ValueError(f"split_pattern={pattern} does not fit the key '{os.fsdecode(key)}'.")
        return stamp(match[1] if match else key) / 2**64

    draws = np.fromiter(map(draw, rows), np.float64, len(rows))
    cuts = np.searchsorted([test, test + val], draws, side="right")
    return {name: rows[cuts == cut] for name, cut in (("train", 2), ("val", 1), ("test", 0))}


def split_by_files(keys: np.ndarray, rows: np.ndarray, root: Path, files: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The `rows` whose keys the files list, one a line; a "train" without a file gets the rows that no file lists.

    Keys of rows that were dropped may be listed. Raises ValueError naming file, line and key for one that the data
    set never had and for one that is listed twice.
    """
    owner = np.full(len(keys), -1)
    for name, file in files.items():
        path = root / file
        if name not in SPLITS or not path.is_file():
            raise ValueError(f"split_files: {name}={path} is not a file, or not for one of {', '.join(SPLITS)}.")
        listed = [line.strip() for line in path.read_bytes().splitlines()]
        for line, row in enumerate(match(listed, keys.tolist())):
            if not listed[line]:
                continue
            if row < 0 or owner[row] >= 0:
                what = f"is also in {SPLITS[owner[row]]}" if row >= 0 else "names no row, or several"
                raise ValueError(f"{path}, line {line + 1}: '{os.fsdecode(listed[line])}' {what}.")
            owner[row] = SPLITS.index(name)
    if "train" not in files:
        owner[owner < 0] = SPLITS.index("train")
    return {name: rows[owner[rows] == number] for number, name in enumerate(SPLITS)}
