"""Ads to be scored, read row by row from a table or a folder: any number of rows, memory that does not grow with them.

A table (`src.data.tables`) has a column `image` (a path, relative to the table's folder) and the columns that
the reward needs: product, depth, saliency (paths), title, prompt (texts). The column `key`, which must then be unique,
names the rows; without it the image does.

A folder holds one subfolder per field: `image/mug.png`, `product/mug.png`, `title/mug.txt`, ...; the file's stem is the
key, and rows come in the order of the file names. If only images are needed, they may be in the folder itself.
"""

import hashlib
import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from src.data.batch import IMAGE_FIELDS, Record
from src.data.images import (
    BROKEN,
    CHANNELS,
    SUFFIXES,
    channels_first,
    check_canvas,
    in_mode,
    opened,
    reason,
    resized,
)
from src.data.tables import TableReader

READABLE = ("product", "depth", "saliency", "title", "prompt")  # fields besides the image that a row can carry


@dataclass(frozen=True)
class Row:
    """A row: its number (from 1, a table's header is not counted), its key, its cells, and why it is bad, if it is."""

    number: int
    key: str
    cells: dict[str, str]
    problem: str = ""


class RowError(ValueError):
    """What is wrong with a row, and in which file ("" if it is the row itself)."""

    def __init__(self, reason: str, file: Path | str = "") -> None:
        super().__init__(reason)
        self.file = str(file)


class Ads(ABC):
    """The rows of a table or folder, in order.

    fingerprint: changes whenever the rows do. total: about how many rows there are (for a progress bar). in_files: the
    fields of a row that are files.
    """

    fingerprint: str
    total: int
    in_files: list[str]

    def __init__(self, path: Path, fields: frozenset[str]) -> None:
        if foreign := sorted(fields - set(READABLE)):
            raise ValueError(f"{path}: a row has no field {', '.join(foreign)}; it can have {', '.join(READABLE)}.")
        self.path, self.fields = path, ("image", *(field for field in READABLE if field in fields))

    def __iter__(self) -> Iterator[Row]:
        # Seen keys live in a private database on disk: a million of them would not be constant memory.
        seen = _database("CREATE TABLE seen (key TEXT PRIMARY KEY, number INTEGER) WITHOUT ROWID")
        for row in self._rows():
            row = row if row.problem else _checked(row, self.fields)
            added = "INSERT OR IGNORE INTO seen VALUES (?, ?)"
            if not row.problem and not seen.execute(added, (row.key, row.number)).rowcount:
                (first,) = seen.execute("SELECT number FROM seen WHERE key = ?", (row.key,)).fetchone()
                row = replace(row, problem=f"duplicate key, first used in row {first}")
            yield row

    def read(self, row: Row, max_size: int | None = None) -> Record:
        """The record of a row: its key, images as uint8 (channels, height, width) of the image's size, texts.

        An image whose longer side is above `max_size` px is reduced to it. Raises RowError for a missing or damaged
        file.
        """
        if row.problem:
            raise RowError(row.problem)
        record: Record = {"key": row.key}
        for field in self.fields:  # image first
            if field in IMAGE_FIELDS:
                size = record["image"].shape[:0:-1] if field != "image" else None  # (width, height)
                record[field] = read_image(self._file(row, field), field, size, max_size)
            else:
                record[field] = self._text(row, field)
        return record

    def cells(self, row: Row, fields: Iterable[str], folder: Path) -> dict[str, str]:
        """Those of the `fields` that the row has, for a table in `folder`: texts, and paths relative to it."""
        return {
            field: os.path.relpath(self._file(row, field), folder) if field in IMAGE_FIELDS else self._text(row, field)
            for field in fields
            if row.cells.get(field)
        }

    def contents(self) -> str:
        """A hash of the size and the time of change of every file that the rows name."""
        digest = hashlib.blake2b(digest_size=16)
        for row in self._rows():
            for field in self.in_files:
                try:
                    stat = os.stat(self._file(row, field))
                    digest.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
                except (OSError, ValueError, KeyError):  # the row will fail
                    digest.update(b"missing\n")
        return digest.hexdigest()

    @abstractmethod
    def _rows(self) -> Iterator[Row]: ...

    @abstractmethod
    def _file(self, row: Row, field: str) -> Path: ...

    @abstractmethod
    def _text(self, row: Row, field: str) -> str: ...


class Table(Ads):
    """The rows of a CSV, TSV or JSONL file. Raises ValueError if required columns are missing."""

    def __init__(self, path: Path, fields: frozenset[str]) -> None:
        super().__init__(path, fields)
        self.table = TableReader(path, self.fields)
        self.in_files = [field for field in self.fields if field in IMAGE_FIELDS]
        digest, lines, last = hashlib.blake2b(digest_size=16), 0, b"\n"
        with path.open("rb") as file:
            while block := file.read(1 << 16):
                digest.update(block)
                lines, last = lines + block.count(b"\n"), block[-1:]
        self.fingerprint = digest.hexdigest()
        self.total = lines + (last != b"\n") - bool(self.table.columns)

    def _rows(self) -> Iterator[Row]:
        for number, (_, cells, problem) in enumerate(self.table, start=1):
            yield Row(number, cells.get("key" if "key" in cells else "image", ""), cells, problem)

    def _file(self, row: Row, field: str) -> Path:
        return self.path.parent / row.cells[field]

    def _text(self, row: Row, field: str) -> str:
        return row.cells[field]


class Folder(Ads):
    """The images of a folder with the files that belong to them. Raises ValueError if a needed subfolder is missing."""

    def __init__(self, path: Path, fields: frozenset[str]) -> None:
        super().__init__(path, fields)
        if not path.is_dir():
            raise ValueError(f"{path}: no such folder.")
        self.in_files = list(self.fields)
        self.flat = len(self.fields) == 1 and not (path / "image").is_dir()
        if missing := [] if self.flat else [field for field in self.fields if not (path / field).is_dir()]:
            raise ValueError(
                f"{path}: the subfolder {', '.join(missing)} is missing; needed are {', '.join(self.fields)}."
            )
        self.names = _database("CREATE TABLE names (name TEXT PRIMARY KEY) WITHOUT ROWID")
        with os.scandir(path if self.flat else path / "image") as entries:
            for entry in entries:
                if Path(entry.name).suffix.lower() in SUFFIXES:
                    self.names.execute("INSERT INTO names VALUES (?)", (os.fsencode(entry.name),))
        digest, self.total = hashlib.blake2b(digest_size=16), 0
        for name in self._names():
            digest.update(os.fsencode(name) + b"\n")
            self.total += 1
        self.fingerprint = digest.hexdigest()

    def _names(self) -> Iterator[str]:
        return (os.fsdecode(name) for (name,) in self.names.execute("SELECT name FROM names ORDER BY name"))

    def _rows(self) -> Iterator[Row]:
        for number, name in enumerate(self._names(), start=1):
            yield Row(number, Path(name).stem, dict.fromkeys(self.fields, name))

    def _file(self, row: Row, field: str) -> Path:
        if field == "image":
            return self.path / ("" if self.flat else field) / row.cells["image"]
        if field not in IMAGE_FIELDS:
            return self.path / field / f"{row.key}.txt"
        for suffix in (*SUFFIXES, *map(str.upper, SUFFIXES)):
            if (file := self.path / field / f"{row.key}{suffix}").exists():
                return file
        raise RowError(f"no such image ({', '.join(SUFFIXES)})", self.path / field / row.key)

    def _text(self, row: Row, field: str) -> str:
        file = self._file(row, field)
        try:
            if text := file.read_text(encoding="utf-8").strip():
                return text
        except (OSError, UnicodeDecodeError) as error:
            raise RowError(reason(error), file) from None
        raise RowError("the file is empty", file)


def without_suffix(key: str) -> str:
    """The key without the suffix of an image file, to name a file after it: an image's path may be its key."""
    return str(Path(key).with_suffix("")) if Path(key).suffix.lower() in SUFFIXES else key


def read_image(file: Path, field: str, size: tuple[int, int] | None = None, max_size: int | None = None) -> np.ndarray:
    """An image file as uint8 (channels of `field`, height, width), resized to `size` (width, height) if given.

    Without `size` its longer side is at most `max_size`, if given. Antialiased, bilinear, colors weighted by alpha.
    Raises RowError for a file that is missing or damaged, a product without alpha, and an aspect ratio other than
    that of `size`.
    """
    try:
        image = opened(file.read_bytes(), field)
        if size:
            check_canvas(field, image.size, size)
        elif max_size and max(image.size) > max_size:
            scale = max_size / max(image.size)
            size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = in_mode(image, CHANNELS[field])
    except BROKEN as error:
        raise RowError(reason(error), file) from None
    return channels_first(resized(image, size or image.size))


def _checked(row: Row, fields: tuple[str, ...]) -> Row:
    """The row, with its problem if required cells are empty."""
    if empty := [field for field in fields if not row.cells.get(field, "").strip()]:
        return replace(row, problem=f"no {', '.join(empty)}")
    try:
        "".join((row.key, *row.cells.values())).encode()
    except UnicodeEncodeError:
        return replace(row, problem="not UTF-8")
    return row if row.key else replace(row, problem="no key")


def _database(table: str) -> sqlite3.Connection:
    """An empty private table on disk that goes with the process."""
    database = sqlite3.connect("", isolation_level=None)
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA cache_size = -65536")  # at most 64 MiB in memory, enough for a million keys
    database.execute(table)
    database.execute("BEGIN")  # and never committed: a commit per row would be slow
    return database
