"""People's choices among images of one prompt, to train and test a preference model on: `data=hpd_v1`, `hpd_v2`, ...

`python -m src.data.preferences OUT` writes a small folder in the format of HPD v1 to try the reader on.
"""

import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from src.data.archive import expand
from src.data.batch import Record
from src.data.images import BROKEN, opened, reason, squared
from src.data.preference_formats import FORMATS, Choice, read_choices
from src.data.quarantine import Quarantine
from src.data.richhf_format import find_images
from src.data.showroom.world import Showroom
from src.data.splits import SPLITS, Source, Split, digest, stamp
from src.runtime.command import example_command
from src.runtime.files import new_folder, write_json

FITS = ("pad", "crop")


class Preferences(Source):
    """A record is an image; the images of one prompt among which people chose are a group.

    Records have key ("<stem of the file>/<entry>/<image>"; entries count from 1, images from 0), image, prompt, group,
    chosen, rank and weight. A batch has whole groups of any sizes: rows are images, nothing is padded.

    Args:
        format: one of FORMATS.
        folder: what `files` and `images` are relative to.
        files: the file of a split, or a pattern of several (data/train-*.parquet); without one, a split has no records.
        images: the folder of the images, for all splits or by split. Paths may also be relative to the split's file.
            Pick-a-Pic: of images named by uid, as `python -m src.data.pickapic` copies them out of parquet files.
        val: share of the prompts of train that are the split val, if that has no file; a hash of the prompt decides.
        size: in px, of the square images.
        fit: how they become square, "pad" or "crop", see `src.data.images.squared`.
        verify: decode all images at the start.
        on_error: "raise" a ValueError at the first bad entry, or "skip": bad entries go to `quarantine` (JSON lines
            with file, line: the entry's number, key and reason; None: quarantine.jsonl in `folder`) and out of the
            splits. A training group with an image that cannot be decoded is listed when it is read, and the next one
            of its size takes its place, the same each time; one of val or test ends the run, unless `verify` finds it.

    Raises ValueError naming file and entry for a choice that is none of its images, shares that are no shares, a group
    of less than two images, an empty prompt, and an image that is missing or damaged.
    """

    classes = ()
    fields = frozenset({"key", "image", "prompt", "group", "chosen", "rank", "weight"})
    licence = "Other: trained on people's choices, or own data in their format; see the terms of the data"

    def __init__(
        self,
        format: str,
        folder: str,
        files: Mapping[str, str | None],
        images: str | Mapping[str, str] = ".",
        val: float = 0.0,
        size: int = 224,
        fit: str = "pad",
        verify: bool = False,
        on_error: str = "raise",
        quarantine: str | None = None,
    ) -> None:
        for name, value, choices in (
            ("format", format, FORMATS), ("fit", fit, FITS), ("on_error", on_error, ("raise", "skip")),
            *(("files", split, SPLITS) for split in files),
        ):  # fmt: skip
            if value not in choices:
                raise ValueError(f"{name}={value}: choose from {', '.join(choices)}.")
        if size < 1 or not 0 <= val < 1:
            raise ValueError(f"size={size} must be at least 1 px, val={val} in [0, 1).")
        self.about = f"people's choices among images, in the format of {format}."
        self.size, self.fit, self.verify, self.skip = size, fit, verify, on_error == "skip"
        root = Path(folder).resolve()
        self.quarantine = Quarantine(Path(quarantine or root / "quarantine.jsonl") if self.skip else None)
        self.choices: dict[str, list[Choice]] = {split: [] for split in SPLITS}
        for split, pattern in files.items():
            if pattern is None:
                continue
            place = root / (images if isinstance(images, str) else images.get(split, "."))
            base, found = expand(root, pattern)
            find = _by_uid(place) if format == "pickapic" else _by_path(place, base)
            for file in found:
                self.choices[split] += self._read(file, format, find)
            if not self.choices[split]:
                raise ValueError(f"{root / pattern}: there is no usable entry.")
        self.quarantine.write()
        if val and not files.get("val"):
            parts: dict[str, list[Choice]] = {"train": [], "val": []}
            for choice in self.choices["train"]:
                parts["val" if stamp(choice.prompt.encode()) / 2**64 < val else "train"].append(choice)
            self.choices |= parts

    def split(self, name: str) -> "Rows":
        """The records of "train", "val" or "test", in the order of the file."""
        if name not in self.choices:
            raise ValueError(f"No split {name!r}; choose from {', '.join(self.choices)}.")
        return Rows(self, name)

    def fingerprint(self) -> str:
        """Of the choices, prompts and names of the images by split."""
        return digest(
            repr(choice._replace(file=choice.file.name, images=tuple(map(os.path.basename, choice.images))))
            for choices in self.choices.values()
            for choice in choices
        )

    def fault(self, file: Path, number: int, reason: str) -> None:
        """Raises ValueError for a bad entry, or adds it to the quarantine file."""
        if not self.skip:
            raise ValueError(f"{file}, entry {number}: {reason}.")
        self.quarantine(file, number, f"{file.stem}/{number}", reason)

    def _read(self, file: Path, form: str, find: Callable[[str], str]) -> list[Choice]:
        choices = []
        for number, choice in read_choices(file, form):
            try:
                if isinstance(choice, ValueError):
                    raise choice
                choice = choice._replace(images=tuple(map(find, choice.images)))
                if self.verify:
                    self.images(choice)
            except ValueError as error:
                self.fault(file, number, str(error))
            else:
                choices.append(choice)
        return choices

    def images(self, choice: Choice) -> list[np.ndarray]:
        """The images of a choice, uint8 (3, size, size). Raises ValueError with the reason why one cannot be read."""
        found = []
        for path in choice.images:
            try:
                found.append(squared(opened(Path(path).read_bytes(), "image"), self.size, self.fit))
            except BROKEN as error:
                raise ValueError(f"{path}: {reason(error)}") from None
        return found


class Rows(Split):
    """One split. The groups are numbered in the order of the file."""

    def __init__(self, source: Preferences, split: str) -> None:
        self.source, self.choices = source, source.choices[split]
        self.replaces = split == "train" and source.skip
        self.sizes = np.array([len(choice.images) for choice in self.choices], np.int64)
        self.ends = np.cumsum(self.sizes)
        self.read: tuple[int, list[Record]] = (-1, [])  # the last group: its images are asked for one after another

    def __len__(self) -> int:
        return int(self.sizes.sum())

    @property
    def groups(self) -> np.ndarray:
        """The group of every image, int64 (images,)."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def __getitem__(self, index: int) -> Record:
        index = range(len(self))[index]
        group = int(np.searchsorted(self.ends, index, side="right"))
        if self.read[0] != group:
            self.read = group, self._group(group)
        return dict(self.read[1][index - int(self.ends[group])])  # counted from the group's end

    def keys(self) -> list[str]:
        return [key for choice in self.choices for key in _keys(choice)]

    def _group(self, group: int) -> list[Record]:
        """The records of a group, or of the next of its size that can be read."""
        count, size = len(self.choices), self.sizes[group]
        for choice in (self.choices[(group + step) % count] for step in range(count)):
            if len(choice.images) != size:
                continue
            try:
                images = self.source.images(choice)
            except ValueError as error:
                if not self.replaces:
                    raise ValueError(f"{choice.file}, entry {choice.number}: {error}.") from None
                self.source.fault(choice.file, choice.number, str(error))
                continue
            whole = {"prompt": choice.prompt, "group": group, "weight": choice.weight}
            rows = zip(_keys(choice), images, choice.chosen, choice.rank, strict=True)
            return [dict(whole, key=key, image=image, chosen=share, rank=rank) for key, image, share, rank in rows]
        raise ValueError(f"no group of {size} images can be read, see {self.source.quarantine.path}.")


def _keys(choice: Choice) -> list[str]:
    return [f"{choice.file.stem}/{choice.number}/{number}" for number in range(len(choice.images))]


def _by_path(*folders: Path) -> Callable[[str], str]:
    """Finds an image by its path, relative to the first of some folders that has it. Raises ValueError if none has."""

    @functools.cache  # an image of HPD v2 is in several groups
    def find(name: str) -> str:
        for folder in folders:
            if os.path.isfile(path := os.path.join(folder, name)):
                if not os.path.getsize(path):
                    raise ValueError(f"{path}: the file is empty")
                return path
        raise ValueError(f"{folders[0] / name}: no such file")

    return find


def _by_uid(folder: Path) -> Callable[[str], str]:
    """Finds an image by its uid, the stem of a file in a folder or below it. Raises ValueError if it is not there."""
    files = find_images(folder)

    def find(name: str) -> str:
        if name not in files:
            raise ValueError(f"{folder}: no image of {name}; `python -m src.data.pickapic` copies the images")
        return files[name]

    return find


def write_example(out: str, groups: int = 48, size: int = 128) -> Path:
    """A folder as `data=hpd_v1` reads it: in each split `groups` groups of two to four showroom images of `size` px."""
    root = new_folder(out)
    (root / "preference_images").mkdir()
    for split in ("train", "test"):
        rows = Showroom({split: 9 * groups}, size, holds=["image", "prompt", "group", "chosen"]).split(split)
        entries: list[dict] = []
        for record in map(rows.__getitem__, np.flatnonzero(rows.groups < groups).tolist()):
            if record["group"] == len(entries):
                entries.append({"prompt": record["prompt"], "id": len(entries), "file_path": []})
            images, name = entries[-1]["file_path"], f"preference_images/{record['key']}.png"
            if record["chosen"]:
                entries[-1]["human_preference"] = len(images)
            images.append(name)
            Image.fromarray(record["image"].transpose(1, 2, 0)).save(root / name)
        write_json(root / f"preference_{split}.json", entries)
    return root


if __name__ == "__main__":
    sys.exit(example_command("src.data.preferences", write_example))
