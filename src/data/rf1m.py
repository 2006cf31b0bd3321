"""RF1M, the data set of "Towards Reliable Advertising Image Generation Using Human Feedback" (ECCV 2024), as released.

The release is images in many folders or archives and `label.txt`, one "image label" per line; PNG cut-outs with alpha
of the same file names for a third of them. Titles, prompts, depth and saliency are not part of it; where they exist,
they are read. `python -m src.data.rf1m OUT` writes a small folder of this layout.
"""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from src.data.archive import NONE, Images, expand, load_arrays, match, save_arrays
from src.data.batch import CLASSES, Record
from src.data.images import BROKEN, FITS, check_canvas, decoded, opened, reason, unfitted
from src.data.labels import NAMES, UNSUITABLE, read_labels, read_texts
from src.data.module import AdData
from src.data.quarantine import Quarantine
from src.data.splits import SPLITS, Source, Split, digest, split_by_files, split_by_hash, stamp
from src.runtime.command import example_command
from src.runtime.files import new_folder
from src.runtime.progress import progress_bar

VERIFY = {"none": (), "evaluation": ("val", "test"), "all": SPLITS}
CHUNK = 512  # rows that are verified at a time


class RF1M(Source):
    """The rows of `label.txt`: key, image, label, and each modality that is configured; see `conf/data/rf1m.yaml`.

    Products, maps and titles belong to the image of the same file stem. A row without a configured modality is an
    error, unless `require` lists the modality: then such rows are left out and counted in `counts`.

    on_error="skip" leaves bad rows out and lists them in `quarantine` (JSON lines: file, line, key, reason), which is
    written again at each start. A training row found broken while reading is added there and replaced by the next
    readable one of its split, always the same; one of val or test ends the run, as the replacement would count twice in
    a metric.
    Rows that were verified are remembered until their files change.
    """

    about = "generated ads of JD.com products with human labels (Du et al., ECCV 2024); for academic research only."
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
        patterns = {"image": images, "product": products, "depth": depth, "saliency": saliency}
        patterns = {field: pattern for field, pattern in patterns.items() if pattern}
        verify = verify or ("evaluation" if on_error == "skip" else "none")
        optional = [*patterns, *(["title"] if titles else [])][1:]
        words = [("unsuitable", unsuitable, ("drop", "class")), ("on_error", on_error, ("raise", "skip"))]
        words += [("fit", fit, FITS), ("verify", verify, VERIFY), *(("require", field, optional) for field in require)]
        for word, value, choices in words:
            if value not in choices:
                raise ValueError(f"{word}={value}: choose one of {', '.join(choices) or 'none'}.")
        if size < 1:
            raise ValueError(f"size={size} must be at least 1 px.")
        self.root, self.size, self.fit, self.on_error = Path(root).resolve(), size, fit, on_error
        if not self.root.is_dir():
            raise ValueError(f"root={root}: folder not found.")
        self.table, self.cache = self.root / labels, Path(cache or self.root)
        self.fault = Quarantine(Path(quarantine or self.cache / "quarantine.jsonl") if on_error == "skip" else None)
        self.classes = (*CLASSES, UNSUITABLE) if unsuitable == "class" else CLASSES

        keys, self.lines, self.label = read_labels(self.table, label_map, separator, header, self.fault)
        self.keys = np.array(keys, "S")  # bytes, not objects: workers share it
        keep = (self.label != NAMES.index(UNSUITABLE)) | (unsuitable == "class")
        self.counts = {"unsuitable": int((~keep).sum())}
        self.images: dict[str, Images] = {}  # by field, image first
        others = [place for field in patterns if field != "image" for place in expand(self.root, patterns[field])[1]]
        for field, pattern in patterns.items():
            self.images[field] = Images(self.root, pattern, keys, others, field != "image", self.fault, cache or "")
            self._find(field, self.images[field].found, keep, require)
        self.texts: dict[str, np.ndarray] = {}
        if titles:
            known, texts = read_texts(self.root / titles, self.fault, titles_encoding)
            found = match(keys, known)
            self._find("title", found, keep, require)
            self.texts = {field: np.array([*values, ""], "T")[found] for field, values in texts.items()}  # StringDType
        self.fields = frozenset({"key", "label", *self.images, *self.texts})
        rows = np.flatnonzero(keep)
        if split_files:
            splits = split_by_files(self.keys, rows, self.root, split_files)
        else:
            splits = split_by_hash(self.keys, rows, val, test, split_pattern)
        if verify != "none":
            self._verify(np.concatenate([splits[name] for name in VERIFY[verify]]), keep)
        self.rows = {name: of[keep[of]] for name, of in splits.items()}
        self.counts |= {"quarantined": len(self.fault), **{name: len(rows) for name, rows in self.rows.items()}}
        self.fault.write()
        if not keep.any():
            raise ValueError(f"{self.table}: no usable row is left ({self.counts}).")
        logging.getLogger(__name__).info("%s: %s", self.table, self.counts)

    def split(self, name: str) -> "Rows":
        return Rows(self, self.rows[name], name == "train" and self.on_error == "skip")

    def fingerprint(self) -> str:
        """Of keys, labels and texts by split."""
        texts = self.texts.values()
        return digest(
            part
            for rows in self.rows.values()
            for part in (self.keys[rows].tobytes(), self.label[rows].tobytes(), *("\0".join(t[rows]) for t in texts))
        )

    def record(self, row: int) -> Record:
        """One row of the table, images as uint8 (channels, size, size). Raises ValueError naming the bad file."""
        record: Record = {"key": self.key(row), "label": int(self.label[row])}
        record |= {field: texts[row] for field, texts in self.texts.items()}
        canvas = None
        for field, images in self.images.items():
            try:
                image = opened(images.read(row), field)
                canvas = canvas or image.size
                check_canvas(field, image.size, canvas)
                record[field] = decoded(image, field, self.size, self.fit)
            except BROKEN as error:
                raise ValueError(f"{field} {images.where(row)}: {reason(error)}") from error
        return record

    def key(self, row: int) -> str:
        return os.fsdecode(self.keys[row])

    def _find(self, field: str, found: np.ndarray, keep: np.ndarray, require: Sequence[str]) -> None:
        """Drops the rows for which nothing was found: counted if required, else as faults."""
        if field in require:
            self.counts[f"without {field}"] = int((keep & (found == NONE)).sum())
            keep &= found != NONE
        way = "data.on_error=skip" if field == "image" else f"data.require=[{field}]"
        for row in np.flatnonzero(keep & (found < 0)).tolist():
            missing = f"no {field} of this name ({way} leaves out the rows without one)"
            self._drop(row, missing if found[row] == NONE else f"more than one {field} of this name", keep)
        if field == "image":
            rows = np.flatnonzero(keep)
            _, first, inverse = np.unique(found[rows], return_index=True, return_inverse=True)
            for late in np.flatnonzero(first[inverse] != np.arange(len(rows))).tolist():
                line = self.lines[rows[first[inverse[late]]]]
                self._drop(int(rows[late]), f"duplicate image, first in line {line}", keep)

    def _drop(self, row: int, reason: str, keep: np.ndarray) -> None:
        self.fault(self.table, int(self.lines[row]), self.key(row), reason)
        keep[row] = False

    def _verify(self, rows: np.ndarray, keep: np.ndarray) -> None:
        """Drops the `rows` to keep that cannot be read; those read before, of unchanged files, are not read again."""
        rows, file = rows[keep[rows]], self.cache / f"{self.table.name}.verified.npz"
        seen = load_arrays(file).get("marks", np.empty(0, np.uint64))
        marks = np.fromiter(map(self.mark, rows), np.uint64, len(rows))
        unseen = np.flatnonzero(~np.isin(marks, seen))
        readable = np.zeros(len(rows), bool)
        try:
            with ThreadPoolExecutor() as pool, progress_bar(len(unseen), desc="verifying images") as bar:
                for chunk in np.split(unseen, range(CHUNK, len(unseen), CHUNK)):
                    for index, problem in zip(chunk, pool.map(self._problem, rows[chunk]), strict=True):
                        if problem:
                            self._drop(int(rows[index]), problem, keep)
                        readable[index] = not problem
                        bar.update()
        finally:  # the first bad file may end it
            save_arrays(file, marks=np.union1d(seen, marks[readable]))

    def _problem(self, row: int) -> str:
        try:
            self.record(row)
        except ValueError as error:
            return str(error)
        return ""

    def mark(self, row: int) -> int:
        """A 64-bit hash that changes with the files of a row."""
        states = []
        for field, images in self.images.items():
            try:
                stat = images.file(row).stat()
                states.append((field, images.where(row), stat.st_size, stat.st_mtime_ns))
            except OSError:
                states.append(field)
        return stamp(repr(states).encode())


class Rows(Split):
    """One split: record i is row i of the split; with `stand_in`, the next readable row instead of a broken one."""

    def __init__(self, source: RF1M, rows: np.ndarray, stand_in: bool) -> None:
        self.source, self.rows, self.stand_in = source, rows, stand_in

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        source, count = self.source, len(self.rows)
        for row in (int(self.rows[(range(count)[index] + step) % count]) for step in range(count)):
            try:
                return source.record(row)
            except ValueError as error:
                fault = source.fault if self.stand_in else Quarantine(None)
                fault(source.table, int(source.lines[row]), source.key(row), str(error))
        raise ValueError(f"{source.table}: no row of this split can be read, see {source.fault.path}.")

    def keys(self) -> list[str]:
        return [self.source.key(row) for row in self.rows.tolist()]

    def state(self, index: int) -> str:
        return f"{self.source.mark(int(self.rows[index])):016x}"

    def unfitted(self, index: int, maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        canvas = opened(self.source.images["image"].read(int(self.rows[index])), "image").size
        return {field: unfitted(values, canvas, self.source.fit) for field, values in maps.items()}


def rf1m_data(batch_size: int, num_workers: int, seed: int, transforms: Any, shares: Any, **source: Any) -> AdData:
    """The data module of an RF1M folder, so that its settings are flat (`data.root=`); `source`: RF1M's arguments."""
    return AdData(RF1M(**source), batch_size, num_workers, seed, transforms, shares)


def write_example(root: str | Path, count: int = 200, size: int = 128, seed: int = 0) -> Path:
    """A folder of the release's layout with made-up images; returns `root`.

    part_00/ ... part_03/ hold `count` JPEG images, label.txt labels 1 to 6 in turn, products/ cut-outs with alpha,
    depth/ and saliency/ maps, titles.csv titles and prompts. Raises ValueError if `root` is not empty.
    """
    root, random = new_folder(root), np.random.default_rng(seed)
    labels, titles = "", "key,title,prompt\n"
    for number in range(count):
        name = f"sku{number:06d}"
        color = tuple(random.integers(40, 216, 3).tolist())
        width, height = (random.uniform(0.3, 0.6, 2) * size).astype(int).tolist()
        left, floor = (size - width) // 2, int(size * 0.8)
        mask = Image.new("L", (size, size))
        ImageDraw.Draw(mask).rounded_rectangle((left, floor - height, left + width, floor), size // 16, fill=255)
        product = Image.new("RGB", (size, size), color)
        product.putalpha(mask)
        room = random.integers(90, 230, (6, 6, 3)).astype(np.uint8)
        image = Image.fromarray(room).resize((size, size), Image.Resampling.BICUBIC)
        image.paste(product, mask=mask)
        depth = Image.linear_gradient("L").resize((size, size))  # the floor comes nearer toward the bottom
        depth.paste(int(255 * floor / size), mask=mask)
        files = {f"part_{number % 4:02d}/{name}.jpg": image, f"products/{name}.png": product}
        files |= {f"depth/{name}.png": depth, f"saliency/{name}.png": mask}
        for file, drawn in files.items():
            (root / file).parent.mkdir(exist_ok=True)
            drawn.save(root / file, quality=92)
        labels += f"{next(iter(files))}\t{number % 6 + 1}\n"
        titles += f"{name},Box No. {number} {width}x{height} cm Free Shipping,a box in a room\n"
    (root / "label.txt").write_text(labels)
    (root / "titles.csv").write_text(titles)
    return root


if __name__ == "__main__":
    sys.exit(example_command("src.data.rf1m", write_example))
