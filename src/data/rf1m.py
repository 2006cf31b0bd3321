"""RF1M, the data set of "Towards Reliable Advertising Image Generation Using Human Feedback" (ECCV 2024), as released.

The release is pictures in many folders or packages and `label.txt`, one "picture label" a line; PNG cut-outs with alpha
of the same file names for a third of them. Titles, prompts, depth and saliency are not part of it; where somebody has
them, they are read. Run `python -m src.data.rf1m OUT` for a small folder of this shape to try the reader on.
"""

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from torch.utils.data import Dataset

from src.data.archive import NONE, Archive, Names, expand, same_file
from src.data.batch import CLASSES, Record
from src.data.images import FITS
from src.data.labels import LABELS, NAMES, UNSUITABLE, read_labels, read_texts
from src.data.modalities import Modalities, Unreadable
from src.data.module import AdData
from src.data.quarantine import Quarantine
from src.data.splits import SPLITS, split_by_files, split_by_hash
from src.data.transform import Transform
from src.runtime.command import example_command
from src.runtime.files import new_folder

VERIFY = ("none", "headers", "pixels")


class RF1M:
    """A Source of the rows of `label.txt`: key, image, label, and each modality that is configured.

    root, labels: the folder and, below it, the table; label_map: its label strings -> class names (None: the release's
    1 to 6; names are read too). unsuitable: "drop", or "class" for a sixth class. separator, header: of the table.
    images, products, depth, saliency: folder, .tar, .zip or glob below root; depth is relative inverse depth (white is
    near). titles: CSV, TSV or JSONL table with key, title and maybe prompt, in titles_encoding. Products, maps and
    titles belong to the picture of the same file stem. A row that lacks a configured modality is an error, unless
    `require` lists that modality: then such rows are left out and counted in `counts` (a third of the release has
    products).
    size, fit: see `src.data.images.decoded`.
    val, test: shares of the rows, drawn by a hash of the key, so that added rows move no other row; split_pattern: a
    regular expression whose first group, in place of the key, is hashed (pictures of one product stay together);
    split_files: {split: list of keys}, instead; "train" without a list gets the rows that are in none.
    on_error: "raise" a ValueError at the first bad line, or "skip": bad rows go to `quarantine` (JSONL: file, line,
    key, reason; None: quarantine.jsonl in cache or root) and out of the splits. A training picture found broken while
    reading is added there and the next readable row of the split takes its place, the same one each time; one of val or
    test ends the run, as a stand-in would count twice in a metric. A new start lists anew.
    verify: look at every file beforehand, "headers" or "pixels", once: what was found good is remembered. None means
    "headers" with skip, and the pixels of val and test; else "none". cache: folder for that list and the indices of
    packages; None: beside them.
    """

    about = (
        "RF1M (Du et al., ECCV 2024): generated advertising pictures of JD.com's products with people's labels; "
        "for academic research only."
    )
    licence = "Other: trained on RF1M, whose owner JD.com allows academic research only"

    def __init__(
        self,
        root: str,
        labels: str = "label.txt",
        label_map: Mapping[int | str, str] | None = None,
        unsuitable: str = "drop",
        separator: str | None = None,
        header: bool = False,
        images: str = ".",
        products: str | None = None,
        titles: str | None = None,
        titles_encoding: str = "utf-8",
        depth: str | None = None,
        saliency: str | None = None,
        require: Sequence[str] = (),
        size: int = 384,
        fit: str = "squash",
        val: float = 0.05,
        test: float = 0.05,
        split_pattern: str | None = None,
        split_files: Mapping[str, str] | None = None,
        on_error: str = "raise",
        quarantine: str | None = None,
        verify: str | None = None,
        cache: str | None = None,
    ) -> None:
        verify = verify or ("headers" if on_error == "skip" else "none")
        _choice("unsuitable", unsuitable, ("drop", "class"))
        _choice("fit", fit, FITS)
        _choice("on_error", on_error, ("raise", "skip"))
        _choice("verify", verify, VERIFY)
        patterns = {"image": images, "product": products, "depth": depth, "saliency": saliency}
        patterns = {field: pattern for field, pattern in patterns.items() if pattern}
        if size < 1:
            raise ValueError(f"size={size} must be at least 1 px.")
        try:
            re.compile(split_pattern or "")
        except re.error as error:
            raise ValueError(f"split_pattern={split_pattern}: no regular expression: {error}.") from None
        for field in require:
            _choice("require", field, [*patterns, "title"][1:] if titles else [*patterns][1:])
        self.root, self.size, self.fit, self.on_error = Path(root).resolve(), size, fit, on_error
        if not self.root.is_dir():
            raise ValueError(f"root={root}: there is no such folder.")
        self.table = self.root / labels
        listed = Path(quarantine) if quarantine else Path(cache or self.root) / "quarantine.jsonl"
        self.fault = Quarantine(listed if on_error == "skip" else None)
        self.classes: tuple[str, ...] = (*CLASSES, UNSUITABLE) if unsuitable == "class" else CLASSES
        store = Path(cache) if cache else None

        self.keys, self.lines, self.label = read_labels(
            self.table, LABELS if label_map is None else label_map, separator, header, self.fault
        )
        keep = np.ones(len(self.keys), bool)
        self._unique(keep, self.keys.hashes(np.arange(len(self.keys))), "key")
        self.counts = {"unsuitable": 0}
        if unsuitable == "drop":
            out = self.label == NAMES.index(UNSUITABLE)
            self.counts["unsuitable"] = int(out.sum())
            keep &= ~out
        self.pictures = self._pictures(patterns, keep, require, store)
        self.texts: dict[str, tuple[Names, np.ndarray]] = {}
        if titles:
            known, texts = read_texts(self.root / titles, self.fault, titles_encoding)
            found = self._found("title", known.find(self.keys), keep, require)
            self.texts = {field: (names, found) for field, names in texts.items()}
        self.fields = frozenset({"key", "label", *self.pictures, *self.texts})
        rows = np.flatnonzero(keep)
        if split_files:
            splits = split_by_files(self.keys, rows, self.root, split_files)
        else:
            splits = split_by_hash(self.keys, rows, val, test, split_pattern)
        if verify != "none":
            self._verify(keep, rows, verify == "pixels", store)
        if verify == "headers" and on_error == "skip":  # a stand-in in training is harmless, in a metric it is not
            measured = np.concatenate([splits["val"], splits["test"]])
            self._verify(keep, measured[keep[measured]], True, store)
        self.counts["quarantined"] = len(self.fault)
        self.fault.write()
        rows = np.flatnonzero(keep)
        self._rows = {name: of[keep[of]] for name, of in splits.items()}
        self.counts.update({name: len(rows) for name, rows in self._rows.items()})
        if not len(rows):
            raise ValueError(f"{self.table}: no usable row is left ({self.counts}).")
        logging.getLogger(__name__).info("%s: %s", self.table, self.counts)

    def split(self, name: str) -> "Rows":
        """The rows of "train", "val" or "test", in the table's order."""
        _choice("split", name, SPLITS)
        return Rows(self, self._rows[name], name == "train" and self.on_error == "skip")

    def record(self, row: int) -> Record:
        """One row of the table. Raises Unreadable."""
        texts = {field: names[found[row]] for field, (names, found) in self.texts.items()}
        pictures = self.pictures.read(row, self.size, self.fit)
        return {"key": self.keys[row], "label": int(self.label[row]), **texts, **pictures}

    def _verify(self, keep: np.ndarray, rows: np.ndarray, pixels: bool, store: Path | None) -> None:
        seen = (store or self.root) / f"{self.table.name}.verified.npz"
        with closing(self.pictures.broken(rows, pixels, seen)) as broken:
            for row, reason in broken:
                self._drop(keep, row, reason)

    def _drop(self, keep: np.ndarray, row: int, reason: str) -> None:
        self.fault(self.table, int(self.lines[row]), self.keys[row], reason)
        keep[row] = False

    def _unique(self, keep: np.ndarray, values: np.ndarray, what: str) -> None:
        """Drops the rows that repeat the value of an earlier one."""
        rows = np.flatnonzero(keep)
        _, first, inverse = np.unique(values[rows], return_index=True, return_inverse=True)
        for late in np.flatnonzero(first[inverse] != np.arange(len(rows))):
            self._drop(keep, rows[late], f"duplicate {what}, first in line {self.lines[rows[first[inverse[late]]]]}")

    def _pictures(
        self, patterns: dict[str, str], keep: np.ndarray, require: Sequence[str], store: Path | None
    ) -> Modalities:
        pictures = Modalities()
        others = [place for field in patterns if field != "image" for place in expand(self.root, patterns[field])[1]]
        for field, pattern in patterns.items():
            archive = Archive(self.root, pattern, others, store, strict=self.on_error == "raise")
            for package, reason in archive.damaged:
                self.fault(package, 0, "", reason)
            found = archive.names.find(self.keys)
            if field == "image":  # a cut-out or map of the same stem, where the picture is missing, is not the picture
                for row in np.flatnonzero(found >= 0).tolist():
                    if not same_file(archive.names.raw(found[row]), self.keys.raw(row)):
                        found[row] = NONE
            pictures[field] = archive, self._found(field, found, keep, require)
            if field == "image":
                self._unique(keep, pictures[field][1], "picture")
        return pictures

    def _found(self, field: str, found: np.ndarray, keep: np.ndarray, require: Sequence[str]) -> np.ndarray:
        """`found`, once the rows without one are dropped: counted where `require` says so, else as faults."""
        if field in require:
            out = keep & (found == NONE)
            self.counts[f"without {field}"] = int(out.sum())
            keep &= ~out
        for row in np.flatnonzero(keep & (found < 0)).tolist():
            count = "no" if found[row] == NONE else "more than one"
            way = f" (data.require=[{field}] leaves out the rows without one)" if found[row] == NONE else ""
            self._drop(keep, row, f"{count} {field} of this name{way}")
        return found


class Rows(Dataset):
    """One split: record i is row i of the split; with `stand_in`, the next readable row in place of a broken one."""

    def __init__(self, source: RF1M, rows: np.ndarray, stand_in: bool) -> None:
        self.source, self.rows, self.stand_in = source, rows, stand_in

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self) -> list[str]:
        """The keys of the split, in order."""
        return [self.source.keys[row] for row in self.rows.tolist()]

    def canvas(self, index: int) -> tuple[str, tuple[int, int]]:
        """The key of row `index` of the split and (width, height) in px of its picture, before it is fitted."""
        row = int(self.rows[index])
        return self.source.keys[row], self.source.pictures.canvas(row)

    def __getitem__(self, index: int) -> Record:
        source, count = self.source, len(self.rows)
        for row in (int(self.rows[(range(count)[index] + step) % count]) for step in range(count)):
            try:
                return source.record(row)
            except Unreadable as error:
                if not self.stand_in:
                    raise ValueError(
                        f"{source.table}, line {source.lines[row]}, '{source.keys[row]}': {error}."
                    ) from error
                source.fault.append(source.table, int(source.lines[row]), source.keys[row], str(error))
        raise ValueError(f"{source.table}: no row of this split can be read, see {source.fault.path}.")


def rf1m_data(
    batch_size: int = 32,
    num_workers: int = 2,
    seed: int = 0,
    transforms: Mapping[str, Transform | None] | None = None,
    shares: Mapping[str, float] | None = None,
    **source: Any,
) -> AdData:
    """The data module of an RF1M folder, so that its words are flat (`data.root=`); `source`: RF1M's arguments."""
    return AdData(RF1M(**source), batch_size, num_workers, seed, transforms, shares)


def write_example(root: str | Path, count: int = 200, size: int = 128, seed: int = 0) -> Path:
    """A folder of the release's shape with made-up pictures, to try the reader on; returns `root`.

    part_00/ ... part_03/ hold `count` JPEG pictures, label.txt their labels 1 to 6 (all occur from 6 pictures on),
    products/ cut-outs with alpha, depth/ and saliency/ maps, titles.csv titles and prompts.
    Raises ValueError if `root` is not empty.
    """
    root, random = new_folder(root), np.random.default_rng(seed)
    labels, titles = [], ["key,title,prompt"]
    for number in range(count):
        name, part = f"sku{number:06d}", f"part_{number % 4:02d}"
        for folder in (part, "products", "depth", "saliency"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        label = number % 6 + 1
        colour = tuple(int(value) for value in random.integers(40, 216, 3))
        width, height = (int(value) for value in random.uniform(0.3, 0.6, 2) * size)
        left, floor = (size - width) // 2, int(size * 0.8)
        box = (left, floor - height, left + width, floor)
        mask = Image.new("L", (size, size))
        ImageDraw.Draw(mask).rounded_rectangle(box, radius=size // 16, fill=255)
        product = Image.new("RGB", (size, size), colour)
        product.putalpha(mask)
        room = random.integers(90, 230, (6, 6, 3)).astype(np.uint8)
        picture = Image.fromarray(room).resize((size, size), Image.Resampling.BICUBIC)
        picture.paste(product, mask=mask)
        depth = Image.linear_gradient("L").resize((size, size))  # the floor comes nearer towards the bottom
        depth.paste(int(255 * floor / size), mask=mask)
        picture.save(root / part / f"{name}.jpg", quality=92)
        for folder, image in (("products", product), ("depth", depth), ("saliency", mask)):
            image.save(root / folder / f"{name}.png")
        labels.append(f"{part}/{name}.jpg\t{label}")
        titles.append(f"{name},Box No. {number} {width}x{height} cm Free Shipping,a box in a room")
    (root / "label.txt").write_text("\n".join(labels) + "\n")
    (root / "titles.csv").write_text("\n".join(titles) + "\n")
    return root


def _choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value}: choose one of {', '.join(choices)}.")


if __name__ == "__main__":
    sys.exit(example_command("src.data.rf1m", write_example))
