"""Pictures found by name, wherever they lie: in folders, or inside tar and zip packages that are read in place."""

import os
import struct
import tarfile
import warnings
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from src.runtime.files import atomic

SUFFIXES = {b".png", b".jpg", b".jpeg", b".webp", b".bmp", b".tif", b".tiff"}
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".7z", ".rar")
NONE, SEVERAL = -1, -2
PART = 65536  # names that are Python objects at one time
FILE, RAW, STORED, DEFLATED = range(4)  # a file; bytes in a tar; a zip member as it is; a zip member packed

# How much of a path two names must share, tried in this order where the bare stem does not decide:
# (parts from the end, 0 for all; with the suffix or without).
LEVELS = ((1, False), (0, True), (0, False), (2, True), (2, False), (1, True))


class Names:
    """Many names packed into one blob: a million cost their bytes and eight more each, no million objects."""

    def __init__(self, names: Iterable[bytes]) -> None:
        blob, ends = bytearray(), array("q", [0])
        for name in names:
            blob += name
            ends.append(len(blob))
        self.blob, self.ends = bytes(blob), np.array(ends, np.int64)

    @classmethod
    def joined(cls, parts: Sequence["Names"]) -> "Names":
        """The names of all parts, in order."""
        names = cls(())
        starts = np.cumsum([0, *(len(part.blob) for part in parts[:-1])])
        names.blob = b"".join(part.blob for part in parts)
        names.ends = np.concatenate([[0], *(part.ends[1:] + start for part, start in zip(parts, starts, strict=True))])
        return names

    def __len__(self) -> int:
        return len(self.ends) - 1

    def raw(self, row: int) -> bytes:
        return self.blob[self.ends[row] : self.ends[row + 1]]

    def __getitem__(self, row: int) -> str:
        return self.raw(row).decode("utf-8", "surrogateescape")

    def hashes(self, rows: np.ndarray, depth: int = 0, suffix: bool = True) -> np.ndarray:
        """64-bit hashes of the last `depth` parts (0: all) of the names in `rows`; comparable within one process."""
        values = np.empty(len(rows), np.int64)
        for part in range(0, len(rows), PART):
            some = rows[part : part + PART]
            spans = zip(self.ends[some].tolist(), self.ends[some + 1].tolist(), strict=True)
            values[part : part + PART] = [hash(_tail(self.blob[i:j], depth, suffix)) for i, j in spans]
        return values

    def find(self, keys: "Names") -> np.ndarray:
        """For each key the row that it names: int64 (keys,), NONE for no row, SEVERAL where more than one fits.

        A key fits a name of the same stem, whatever the folders and the suffix (a picture may have been moved, its
        cut-out is a PNG). Where several names share the stem, the whole path, then the parent folder, then the suffix
        decide. Vectorised over hashes: about 2 s for a million keys among a million names.
        """
        found = np.full(len(keys), NONE, np.int64)
        wanted, rows = np.arange(len(keys)), np.arange(len(self))
        for level, (depth, suffix) in enumerate(LEVELS):
            mine, theirs = self.hashes(rows, depth, suffix), keys.hashes(wanted, depth, suffix)
            order = np.argsort(mine, kind="stable")
            first = np.searchsorted(mine, theirs, "left", order)
            count = np.searchsorted(mine, theirs, "right", order) - first
            one = count == 1
            found[wanted[one]] = rows[order[first[one]]]
            left = count > 1 if level == 0 else ~one
            wanted = wanted[left]
            if not len(wanted):
                break
            if level == 0:
                found[wanted] = SEVERAL
                rows = rows[np.isin(mine, theirs[left])]
        return found


def same_file(name: bytes, key: bytes) -> bool:
    """Whether one of two paths is the end of the other, suffix included, if the key has one."""
    if _tail(key, 0, False) == key:
        name = _tail(name, 0, False)
    long, short = (name, key) if len(name) > len(key) else (key, name)
    return long == short or long.endswith(b"/" + short)


def _tail(name: bytes, depth: int, suffix: bool) -> bytes:
    if not suffix:
        stem, dot, end = name.rpartition(b".")
        if dot + end.lower() in SUFFIXES:
            name = stem
    if depth == 1:
        return name.rpartition(b"/")[2]
    return b"/".join(name.split(b"/")[-depth:]) if depth else name


class Members(NamedTuple):
    """The pictures of one container: names, how each is stored, its offset, its bytes, time of change; all (rows,)."""

    names: Names
    kind: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    modified: np.ndarray


def _members(rows: Iterable[tuple[bytes, int, int, int, int]]) -> Members:
    columns = array("b"), array("q"), array("q"), array("q")

    def names() -> Iterator[bytes]:
        for name, *values in rows:
            for column, value in zip(columns, values, strict=True):
                column.append(value)
            yield name

    packed = Names(names())
    return Members(packed, *(np.array(column) for column in columns))


class Archive:
    """The pictures of a folder or pattern: `names` (folders as part of the name) and `read(row)`, their bytes.

    pattern: a folder (walked with all below it), a .tar or .zip file, or a glob of these and of pictures, relative to
    root. Packages found on the way are indexed in place: the index is kept as `<package>.index.npz` beside the package
    (or in `cache`) and made anew when the package's size or time changes. `exclude`: paths that are not walked.

    Handles are opened by the process that reads, and read with pread, which moves no file position: forked workers
    and threads never disturb each other; spawned workers get no handle and open their own.

    Raises ValueError naming the package for a damaged one (strict=False: its readable members are kept and the reason
    is listed in `damaged`), for a compressed tar, which cannot be read in place, and for a pattern that fits nothing.
    """

    def __init__(
        self,
        root: Path,
        pattern: str = ".",
        exclude: Iterable[Path] = (),
        cache: Path | None = None,
        strict: bool = True,
    ) -> None:
        base, places = expand(root, pattern)
        self.containers: list[Path] = [base]
        self.damaged: list[tuple[Path, str]] = []
        self._strict, self._cache = strict, cache
        self._handles: dict[int, BinaryIO] = {}
        packages: list[Path] = []
        seen = {os.path.realpath(path) for path in exclude} - {os.path.realpath(place) for place in places}
        parts = [_members(row for place in places for row in _walk(base, place, seen, packages))]
        for package in sorted(packages):
            self.containers.append(package)
            parts.append(self._package(package))
        names, *columns = zip(*parts, strict=True)
        self.names = Names.joined(names)
        self.kind, self.offset, self.size, self.modified = (np.concatenate(column) for column in columns)
        self.container = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in names])

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_handles": {}}

    def where(self, row: int) -> str:
        """The picture's place as a person would look for it: a path, or `package:member`."""
        container = self.containers[self.container[row]]
        if self.kind[row] == FILE:
            return str(container / self.names[row])
        return f"{container}:{self.names[row][len(_prefix(self.containers[0], container)) :]}"

    def read(self, row: int, most: int | None = None) -> bytes:
        """The picture's bytes, or about the first `most` of them. Raises OSError when they cannot be had."""
        kind, offset, size = int(self.kind[row]), int(self.offset[row]), int(self.size[row])
        part = size if most is None else min(most, size)
        if kind == FILE:
            with open(self.containers[0] / self.names[row], "rb") as file:
                return file.read(-1 if most is None else most)
        if kind in (STORED, DEFLATED):
            header = self._read_at(row, offset, 30)
            if header[:4] != b"PK\x03\x04":
                raise OSError("damaged zip member")
            offset += 30 + sum(struct.unpack("<HH", header[26:30]))
        data = self._read_at(row, offset, part)
        if kind == DEFLATED:
            try:
                data = zlib.decompressobj(-15).decompress(data) if part < size else zlib.decompress(data, -15)
            except zlib.error as error:
                raise OSError(f"damaged zip member ({error})") from error
        return data

    def _read_at(self, row: int, offset: int, size: int) -> bytes:
        container = int(self.container[row])
        handle = self._handles.get(container)
        if handle is None:
            handle = self._handles[container] = open(self.containers[container], "rb", buffering=0)  # noqa: SIM115 stays open
        data = os.pread(handle.fileno(), size, offset)
        if len(data) < size:
            raise OSError(f"the package ends {size - len(data)} bytes early")
        return data

    def _package(self, package: Path) -> Members:
        stat = package.stat()
        signature = np.array([stat.st_size, stat.st_mtime_ns])
        store = (self._cache or package.parent) / f"{package.name}.index.npz"
        prefix = _prefix(self.containers[0], package).encode("utf-8", "surrogateescape")
        cached = load_arrays(store)
        if cached and np.array_equal(cached.get("signature", ()), signature):
            names = Names(())
            names.blob, names.ends = cached["blob"].tobytes(), cached["ends"]
            return _prefixed(Members(names, *(cached[name] for name in Members._fields[1:])), prefix)
        reason: list[str] = []
        scan = _zip_members if package.suffix.lower() == ".zip" else _tar_members
        members = _members((*row, stat.st_mtime_ns) for row in scan(package, reason))
        if reason:
            if self._strict:
                raise ValueError(f"{package}: {reason[0]}.")
            self.damaged.append((package, reason[0]))
        else:
            blob = np.frombuffer(members.names.blob, np.uint8)
            columns = dict(zip(Members._fields[1:], members[1:], strict=True))
            save_arrays(store, signature=signature, blob=blob, ends=members.names.ends, **columns)
        return _prefixed(members, prefix)


def _prefix(base: Path, package: Path) -> str:
    """A package counts as a folder of its own stem: part_01.tar:7.png is found as part_01/7.png."""
    return f"{package.relative_to(base).with_suffix('').as_posix()}/"


def _prefixed(members: Members, prefix: bytes) -> Members:
    return members._replace(names=Names(prefix + members.names.raw(row) for row in range(len(members.names))))


def expand(root: Path, pattern: str) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the places that a folder, package or glob pattern stands for."""
    parts = Path(pattern).parts
    fixed = list(takewhile(lambda part: not set("*?[") & set(part), parts))
    base = root.joinpath(*fixed)
    rest = parts[len(fixed) :]
    places = sorted(base.glob("/".join(rest))) if rest else [base]
    if not places or not all(place.exists() for place in places):
        raise ValueError(f"{root / pattern}: there is no such folder, package or match of the pattern.")
    return (base if base.is_dir() else base.parent), places


def _walk(base: Path, place: Path, seen: set[str], packages: list[Path]) -> Iterator[tuple[bytes, int, int, int, int]]:
    """Yields the pictures at or below a place, and puts the packages met there into `packages`."""
    real = os.path.realpath(place)
    if real in seen or (place.name.startswith(".") and place != base) or place.name == "__MACOSX":
        return
    if place.is_dir():
        seen.add(real)  # a link back up must not be walked for ever
        folder = os.fsencode(place.relative_to(base).as_posix() + "/") if place != base else b""
        with os.scandir(place) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(b".") and entry.is_file():
                    if entry.path not in seen:
                        stat = entry.stat()
                        yield folder + name, FILE, 0, stat.st_size, stat.st_mtime_ns
                elif entry.is_dir() or _is_package(entry.name):
                    yield from _walk(base, place / entry.name, seen, packages)
    elif _is_package(place.name):
        if place.name.lower().endswith(COMPRESSED):
            raise ValueError(f"{place}: only .tar and .zip are read in place; unpack it or pack it as one of these.")
        packages.append(place)
    elif place.suffix.lower().encode() in SUFFIXES:
        stat = place.stat()
        yield os.fsencode(place.relative_to(base).as_posix()), FILE, 0, stat.st_size, stat.st_mtime_ns


def _is_package(name: str) -> bool:
    return name.lower().endswith((".tar", ".zip", *COMPRESSED))


def _is_picture(name: str) -> bool:
    base = name.rpartition("/")[2]
    suffix = os.path.splitext(base)[1].lower().encode("utf-8", "surrogateescape")
    return suffix in SUFFIXES and not base.startswith(".") and not name.startswith("__MACOSX/")


def _tar_members(package: Path, reason: list[str]) -> Iterator[tuple[bytes, int, int, int]]:
    try:
        with tarfile.open(package, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # tarfile would keep a million
                if member.isreg() and _is_picture(member.name):
                    yield member.name.encode("utf-8", "surrogateescape"), RAW, member.offset_data, member.size
    except (tarfile.TarError, OSError) as error:
        reason.append(f"the package is damaged ({error})")


def _zip_members(package: Path, reason: list[str]) -> Iterator[tuple[bytes, int, int, int]]:
    kinds = {zipfile.ZIP_STORED: STORED, zipfile.ZIP_DEFLATED: DEFLATED}
    try:
        with zipfile.ZipFile(package) as archive:
            for member in archive.infolist():
                if member.is_dir() or not _is_picture(member.filename):
                    continue
                if member.compress_type not in kinds or member.flag_bits & 1:
                    reason.append(f"member {member.filename} is encrypted or packed by another method than deflate")
                    continue
                name = member.filename.encode("utf-8", "surrogateescape")
                yield name, kinds[member.compress_type], member.header_offset, member.compress_size
    except (zipfile.BadZipFile, OSError) as error:
        reason.append(f"the package is damaged ({error})")


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz cache; empty when there is none or it is damaged."""
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError):
        return {}


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an .npz cache in one step, so that a killed run leaves none half done; warns where it cannot."""
    try:
        with atomic(path, shared=True) as part, part.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        warnings.warn(
            f"{path} cannot be written ({error}) and is made anew each time; name a folder: cache=", stacklevel=2
        )
