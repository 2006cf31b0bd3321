"""The picture files of a row (image, product, depth, saliency), each found in its archive: read, checked, verified."""

import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from src.data.archive import Archive, load_arrays, save_arrays
from src.data.images import BROKEN, check_canvas, decoded, opened, reason
from src.data.splits import stamp

CHUNK = 128  # rows that one verifying thread takes at a time
SAVE_SECONDS = 60  # between two notes of what is good
HEADER = 16384  # bytes that nearly always hold a picture's header


class Unreadable(ValueError):
    """Says which file of a row cannot be used and why."""


class Modalities(dict[str, tuple[Archive, np.ndarray]]):
    """field: the archive of its files, and for each row of the data set which of them is the row's; image first."""

    def read(self, row: int, size: int, fit: str) -> dict[str, np.ndarray]:
        """The row's pictures as uint8 (channels, size, size), see `decoded`. Raises Unreadable."""
        pictures: dict[str, np.ndarray] = {}
        canvas = None
        for field, (archive, found) in self.items():
            try:
                image = opened(archive.read(found[row]), field)
                canvas = canvas or image.size
                check_canvas(field, image.size, canvas)
                pictures[field] = decoded(image, field, size, fit)
            except BROKEN as error:
                raise _unreadable(field, archive, found[row], error) from error
        return pictures

    def canvas(self, row: int) -> tuple[int, int]:
        """(width, height) of the row's image."""
        archive, found = self["image"]
        return opened(archive.read(found[row]), "image").size

    def check(self, row: int) -> None:
        """Reads the headers only: the files are there, are pictures, of one canvas. Raises Unreadable."""
        canvas = None
        for field, (archive, found) in self.items():
            try:
                try:
                    size = opened(archive.read(found[row], HEADER), field).size
                except BROKEN:
                    size = opened(archive.read(found[row]), field).size
                canvas = canvas or size
                check_canvas(field, size, canvas)
            except BROKEN as error:
                raise _unreadable(field, archive, found[row], error) from error

    def broken(self, rows: np.ndarray, pixels: bool, cache: Path) -> Generator[tuple[int, str]]:
        """The rows whose headers, or pixels too, are broken, with the reason, in order; shows progress.

        What is found good is noted in the file `cache`, also if the search is broken off, and not opened again unless
        it changes. Close the iterator.
        """
        marks = np.array([self._mark(row, pixels) for row in rows.tolist()], np.uint64)
        good = load_arrays(cache).get("marks", np.empty(0, np.uint64))
        unseen = np.flatnonzero(~np.isin(marks, good))
        if not len(unseen):
            return

        def reasons(chunk: np.ndarray) -> list[str]:
            return [self._reason(row, pixels) for row in rows[chunk].tolist()]

        chunks = np.split(unseen, range(CHUNK, len(unseen), CHUNK))
        healthy: list[int] = []
        saved = time.monotonic()
        try:
            with ThreadPoolExecutor() as pool, tqdm(total=len(unseen), desc="verifying pictures", unit="row") as bar:
                for chunk, found in zip(chunks, pool.map(reasons, chunks), strict=True):
                    bar.update(len(chunk))
                    healthy += [index for index, reason in zip(chunk, found, strict=True) if not reason]
                    yield from ((int(rows[i]), reason) for i, reason in zip(chunk, found, strict=True) if reason)
                    if time.monotonic() - saved > SAVE_SECONDS:
                        save_arrays(cache, marks=np.union1d(good, marks[healthy]))
                        saved = time.monotonic()
        finally:  # the first bad file may end it, or a kill
            save_arrays(cache, marks=np.union1d(good, marks[healthy]))

    def _reason(self, row: int, pixels: bool) -> str:
        try:
            if pixels:
                self.read(row, 1, "squash")
            else:
                self.check(row)
        except Unreadable as error:
            return str(error)
        return ""

    def _mark(self, row: int, pixels: bool) -> int:
        """A 64-bit name of these very files and of how they are looked at."""
        marks: list[object] = [pixels]
        for field, (archive, found) in self.items():
            at = found[row]
            marks += [field, archive.names.raw(at)]
            marks += [int(column[at]) for column in (archive.offset, archive.size, archive.modified)]
        return stamp(repr(marks).encode())


def _unreadable(field: str, archive: Archive, at: int, error: BaseException) -> Unreadable:
    return Unreadable(f"{field} {archive.where(at)}: {reason(error)}")
