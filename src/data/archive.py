"""Images found by name, wherever they lie: in folders, or in .tar and .zip archives that are read in place."""

import os
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np

from src.data.images import SUFFIXES
from src.runtime.files import atomic

ENDINGS = tuple(suffix.encode() for suffix in SUFFIXES)
NONE, SEVERAL = -1, -2
LARGEST = 1 << 28  # bytes of an image file; a small member of an archive may inflate to gigabytes
PLAIN = -1  # stands for the compression of a file, and of a member of a .tar archive, which has no checksum

Fault = Callable[[Path, int, str, str], None]  # file, line (0: all of it), key, reason: raises, or lists it and returns


class Images:
    """For each key an image of a folder, an archive or a glob of these and of images, below `root`.

    found: int64 (keys,), negative where there is NONE or there are SEVERAL, see `match`; other rows can be read. A
    member of part_01.zip has the name part_01/<member>. `skip`: files and folders that are left out. moved: see
    `match`. The members of an archive are listed once, in `<archive>.index.npz` beside it, or in the folder `cache`
    under a name with a hash of its path.

    A damaged archive is a fault; what can be listed of a .tar is used. Raises ValueError if no image is there.
    """

    def __init__(
        self, root: Path, pattern: str, keys: list[bytes], skip: list[Path], moved: bool, fault: Fault, cache: str = ""
    ) -> None:
        self.base, places = expand(root, pattern)
        seen = {os.path.realpath(path) for path in skip} - {os.path.realpath(place) for place in places}
        files = [os.fsencode(file[len(str(self.base)) + 1 :]) for place in places for file in _files(place, seen)]
        names = [name for name in files if name.lower().endswith(ENDINGS)]
        packed = [name for name in files if name.lower().endswith((b".tar", b".zip"))]
        self.archives = [self.base / os.fsdecode(name) for name in packed]
        members = [np.tile([-1, 0, -1, 0, PLAIN], (len(names), 1))]  # archive, then the columns of `_index`
        for number, (name, archive) in enumerate(zip(packed, self.archives, strict=True)):
            inside, columns = _index(archive, cache, fault)
            names += [name[: -len(".zip")] + b"/" + member for member in inside]
            members.append(np.insert(columns, 0, number, axis=1))
        if not names:
            raise ValueError(
                f"{root / pattern}: no image ({', '.join(SUFFIXES)}) and no .tar or .zip archive of images is there; "
                "other archives must be unpacked."
            )
        self.found = match(keys, names, moved)
        rows = np.maximum(self.found, 0)
        self.names, self.members = np.array(names)[rows], np.concatenate(members)[rows]

    def where(self, row: int) -> str:
        """The location for error messages: a path, or `archive:member`."""
        file, name = self.file(row), self.base / os.fsdecode(self.names[row])
        return str(file) if file == name else f"{file}:{name.relative_to(file.with_suffix(''))}"

    def file(self, row: int) -> Path:
        """The file that holds the image, itself or an archive."""
        archive = int(self.members[row, 0])
        return self.base / os.fsdecode(self.names[row]) if archive < 0 else self.archives[archive]

    def read(self, row: int) -> bytes:
        """The image's bytes. Raises OSError, struct.error or zlib.error if they cannot be read, or are too many."""
        _, offset, size, checksum, compression = self.members[row].tolist()
        with self.file(row).open("rb") as file:
            file.seek(offset)
            if compression != PLAIN:
                file.seek(sum(struct.unpack("<HH", file.read(30)[26:])), os.SEEK_CUR)
            data = file.read(size)
        if compression == zipfile.ZIP_DEFLATED:
            inflate = zlib.decompressobj(-15)
            data = inflate.decompress(data, LARGEST)
            if inflate.unconsumed_tail:
                raise OSError(f"this member of the archive inflates to more than {LARGEST >> 20} MiB")
        if compression != PLAIN and zlib.crc32(data) != checksum:
            raise OSError("this member of the archive is damaged: its checksum (CRC) does not match")
        return data


def expand(root: Path, pattern: str) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the places that a folder, archive or glob pattern stands for."""
    fixed = list(takewhile(lambda part: not set("*?[") & set(part), Path(pattern).parts))
    base, rest = root.joinpath(*fixed), Path(pattern).parts[len(fixed) :]
    places = sorted(base.glob("/".join(rest))) if rest else [base]
    if not places or not all(place.exists() for place in places):
        raise ValueError(f"{root / pattern}: no such folder or archive, and nothing matches the pattern.")
    return (base if base.is_dir() else base.parent), places


def _files(place: Path, seen: set[str]) -> Iterator[str]:
    """The files at or below a place that are not in `seen`, to which it adds the folders: links may form a cycle."""
    if place.is_file():
        yield from {str(place)} if os.path.realpath(place) not in seen else ()
    for folder, below, files in os.walk(place, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith(".") and name != "__MACOSX")
        shown = (name for name in sorted(files) if not name.startswith("."))
        yield from (os.path.join(folder, name) for name in shown if os.path.join(real, name) not in seen)


def _index(archive: Path, cache: str, fault: Fault) -> tuple[list[bytes], np.ndarray]:
    """The images of an archive: names, and int64 (images, 4) of offset, bytes, checksum and compression."""
    mark = f".{zlib.crc32(os.fsencode(archive)):08x}" if cache else ""  # archives of one name share the folder
    file, names, members = Path(cache or archive.parent) / f"{archive.name}{mark}.index.npz", [], []
    try:
        stat = archive.stat()
        state = f"{archive} {stat.st_size} {stat.st_mtime_ns}"
        if str((stored := load_arrays(file)).get("state")) == state:
            return stored["names"].tolist(), stored["members"]
        for member, *columns in (_zip if archive.suffix.lower() == ".zip" else _tar)(archive):
            name = os.fsencode(member).removeprefix(b"./")
            if name.lower().endswith(ENDINGS) and b"/." not in b"/" + name and not name.startswith(b"__MACOSX/"):
                names.append(name)
                members.append(columns)
    except (zipfile.BadZipFile, tarfile.TarError, OSError) as error:
        fault(archive, 0, "", f"the archive is damaged ({error})")
    else:
        save_arrays(file, state=np.array(state), names=np.array(names, "S"), members=np.array(members, np.int64))
    return names, np.array(members, np.int64).reshape(-1, 4)


def _zip(file: Path) -> Iterator[tuple[str, int, int, int, int]]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise zipfile.BadZipFile(
                    f"{member.filename} is encrypted, or compressed by a method other than deflate"
                )
            yield member.filename, member.header_offset, member.compress_size, member.CRC, member.compress_type


def _tar(file: Path) -> Iterator[tuple[str, int, int, int, int]]:
    with tarfile.open(file, "r:") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  # tarfile would keep a million
            if member.isreg():
                yield member.name, member.offset_data, member.size, 0, PLAIN


def load_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz cache; empty if there is none or it is damaged."""
    try:
        with np.load(file) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return {}


def save_arrays(file: Path, **arrays: np.ndarray) -> None:
    """Writes an .npz cache in one step; warns if it cannot."""
    try:
        with atomic(file, shared=True) as part, part.open("wb") as handle:
            np.savez(handle, **arrays)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        warnings.warn(f"{file} cannot be written ({error}); data.cache= names another folder", stacklevel=2)


def match(keys: Sequence[bytes], names: Sequence[bytes], moved: bool = True) -> np.ndarray:
    """For each key the index of the name that it stands for: int64 (keys,), NONE for no name, SEVERAL if ambiguous.

    Both have the same stem; folders and suffix may differ (a cut-out is a PNG in another folder). Not `moved`: one is
    the end of the other, suffix included if the key has one. Of several, the one that has the most folders in common
    from the end is chosen, then the one with the same suffix.
    """
    by_stem: dict[bytes, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        by_stem[_stem(name.rpartition(b"/")[2])].append(index)

    def find(key: bytes) -> int:
        found = by_stem.get(_stem(key.rpartition(b"/")[2]), [])
        found = [index for index in found if moved or names[index] == key or _same_file(names[index], key)]
        if len(found) < 2:
            return found[0] if found else NONE
        *_, second, best = sorted((_likeness(key, names[index]), index) for index in found)
        return SEVERAL if second[0] == best[0] else best[1]

    return np.fromiter(map(find, keys), np.int64, len(keys))


def _same_file(name: bytes, key: bytes) -> bool:
    name = _stem(name) if _stem(key) == key else name
    short, long = sorted((name, key), key=len)
    return (b"/" + long).endswith(b"/" + short)


def _stem(name: bytes) -> bytes:
    stem, dot, suffix = name.rpartition(b".")
    return stem if (dot + suffix).lower() in ENDINGS else name


def _likeness(key: bytes, name: bytes) -> tuple[int, bool, bool]:
    parts = [_stem(path).split(b"/")[::-1] for path in (key, name)]
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*parts, strict=False)))
    return same, key[len(_stem(key)) :].lower() == name[len(_stem(name)) :].lower(), key == name
