"""Images with prompts as a data set, to fine-tune a generator on: `data=images`.

`python -m src.data.image_table DIR` writes such a table with images of the showroom.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from src.data.ads import Ads, Folder, Row, RowError, Table
from src.data.batch import CLASSES, Record
from src.data.images import FITS, decoded
from src.data.showroom.world import Showroom
from src.data.splits import SPLITS, Source, Split, digest, stamp
from src.data.tables import write_table
from src.runtime.command import example_command
from src.runtime.files import new_folder

KINDS = ("positive", "negative")


class ImageTable(Source):
    """Records have key, image, prompt and product; a table without products gives empty ones.

    The table is one of `src.data.ads`, or a folder of `image/`, `prompt/` and maybe `product/`. All images of a prompt
    are in one split; which one, a hash of the prompt says: `val` and `test` are shares. Images are resized to `size`
    px, `fit` as in `src.data.images.decoded`, or "crop": the center of the shorter side.
    identifier: text before the prompts of rows whose `kind` is negative, such as "Weird image. ", which a generator
    tuned on them takes as a negative prompt (Wu et al., ICCV 2023, arXiv 2303.14420); without it there must be none.

    Rows are checked at the start, files when they are read. Raises ValueError naming table and row.
    """

    classes = ()
    about = "a table of images and prompts; which of them are test rows, a hash of their prompts decides."

    def __init__(
        self,
        table: str | Path,
        size: int,
        fit: str = "squash",
        identifier: str = "",
        val: float = 0.05,
        test: float = 0.05,
    ) -> None:
        self.table = _opened(Path(table))
        if fit not in (*FITS, "crop"):
            raise ValueError(f"fit={fit}: choose one of {', '.join((*FITS, 'crop'))}.")
        self.size, self.fit, self.identifier = size, fit, identifier
        if not (val >= 0 and test >= 0 and val + test < 1):
            raise ValueError(f"val={val}, test={test}: the shares must be at least 0 and leave rows to train on.")
        self.rows: dict[str, list[Row]] = {name: [] for name in SPLITS}
        for row in self.table:
            where = f"{table}, row {row.number} ({row.key})"
            kind = row.cells.get("kind") or KINDS[0]
            if row.problem:
                raise ValueError(f"{where}: {row.problem}.")
            if kind not in KINDS:
                raise ValueError(f"{where}: kind={kind}: choose one of {', '.join(KINDS)}.")
            if kind == KINDS[1] and not identifier:
                raise ValueError(f"{where} is negative: train on it with data=identified, or leave it out.")
            try:
                prompt = self.table.cells(row, ["prompt"], Path())["prompt"]
            except RowError as error:
                raise ValueError(f"{where}: {error.file}: {error}.") from None
            place = stamp(prompt.encode()) / 2**64
            self.rows["test" if place < test else "val" if place < test + val else "train"].append(row)
        if not self.rows["train"]:
            raise ValueError(f"{table} has no row to train on.")
        self.fields = frozenset({"key", "image", "prompt", "product"})

    @property
    def products(self) -> bool:
        """Whether the rows have products."""
        return "product" in self.table.fields

    def split(self, name: str) -> "ImageRows":
        """The rows of "train", "val" or "test"."""
        if name not in SPLITS:
            raise ValueError(f"No split {name!r}; choose from {', '.join(SPLITS)}.")
        return ImageRows(self, self.rows[name])

    def fingerprint(self) -> str:
        """Of the table's bytes, and of the sizes and times of change of its files."""
        return digest([self.table.fingerprint, self.table.contents()])


class ImageRows(Split):
    """Records of rows of an `ImageTable`."""

    def __init__(self, source: ImageTable, rows: list[Row]) -> None:
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        source, row = self.source, self.rows[index]
        try:
            record = source.table.read(row)
            for field, mode in (("image", "RGB"), ("product", "RGBA")):
                if field in record:
                    image = Image.fromarray(np.ascontiguousarray(record[field].transpose(1, 2, 0)), mode)
                    image, fit = (_centre(image), "squash") if source.fit == "crop" else (image, source.fit)
                    record[field] = decoded(image, field, source.size, fit)
        except ValueError as error:
            file = f"{error.file}: " if isinstance(error, RowError) else ""
            raise ValueError(f"{source.table.path}, row {row.number} ({row.key}): {file}{error}.") from None
        record.setdefault("product", np.zeros((4, source.size, source.size), np.uint8))
        if row.cells.get("kind") == KINDS[1]:
            record["prompt"] = source.identifier + record["prompt"]
        return record


def _opened(path: Path) -> Ads:
    """The rows of a table or folder, with products if it has them."""
    fields = frozenset({"prompt"})
    if path.is_dir():
        return Folder(path, fields | {"product"} if (path / "product").is_dir() else fields)
    first = next(iter(Table(path, fields)), None)
    return Table(path, fields | {"product"} if first and "product" in first.cells else fields)


def _centre(image: Image.Image) -> Image.Image:
    """The largest square in the middle."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def write_example(
    out: str | Path, count: int = 512, size: int = 128, split: str = "train", label: str = "available"
) -> Path:
    """`count` of the showroom's images, to try `data=images` and `data=identified` with.

    images.csv has key, image, product, prompt, title and label of each; images/ and products/ the files of `size` px.
    `label`: the class of the images, or all. Raises ValueError if `out` is not empty.
    """
    if count < 1 or size < 32:
        raise ValueError(f"count={count} must be at least 1, size={size} at least 32.")
    if label not in (*CLASSES, "all"):
        raise ValueError(f"label={label}: choose one of {', '.join((*CLASSES, 'all'))}.")
    if split not in SPLITS:
        raise ValueError(f"split={split}: choose one of {', '.join(SPLITS)}.")
    out = new_folder(out)
    for folder in ("images", "products"):
        (out / folder).mkdir()
    rows, written = (
        Showroom({split: 1000 * count}, size, holds=["prompt", "title", "image", "product"]).split(split),
        [],
    )
    for index in range(len(rows)):
        name = CLASSES[rows.scene(index).label]
        if label not in (name, "all"):
            continue
        record = rows[index]
        cells = {"key": record["key"]}
        for field in ("image", "product"):
            cells[field] = f"{field}s/{record['key']}.png"
            Image.fromarray(np.ascontiguousarray(record[field].transpose(1, 2, 0))).save(out / cells[field])
        written.append(cells | {"prompt": record["prompt"], "title": record["title"], "label": name})
        if len(written) == count:
            break
    write_table(out / "images.csv", written)
    return out


if __name__ == "__main__":
    sys.exit(example_command("src.data.image_table", write_example))
