"""A table of images with prompts as a data set, to fine-tune a generator on: `data=images`."""

from pathlib import Path

import numpy as np
from PIL import Image

from src.data.ads import Row, RowError, Table
from src.data.batch import Record
from src.data.images import decoded
from src.data.splits import SPLITS, Source, Split, digest, stamp


class ImageTable(Source):
    """Records have key, image, prompt and product; a table without products gives empty ones.

    The table is one of `src.data.ads`. All images of a prompt are in one split; which one, a hash of the prompt says:
    `val` and `test` are shares. Images are resized to `size` px, `fit` as in `src.data.images.decoded`.
    identifier: text before the prompts of rows whose `kind` is negative, such as "Weird image. ", which a generator
    tuned on them takes as a negative prompt (Wu et al., ICCV 2023, arXiv 2303.14420).

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
        file = Path(table)
        first = next(iter(Table(file, frozenset({"prompt"}))), None)
        self.table = Table(file, frozenset({"prompt", "product"} if first and "product" in first.cells else {"prompt"}))
        self.size, self.fit, self.identifier = size, fit, identifier
        if not (val >= 0 and test >= 0 and val + test < 1):
            raise ValueError(f"val={val}, test={test}: the shares must be at least 0 and leave rows to train on.")
        self.rows: dict[str, list[Row]] = {name: [] for name in SPLITS}
        for row in self.table:
            if row.problem:
                raise ValueError(f"{file}, row {row.number} ({row.key}): {row.problem}.")
            place = stamp(row.cells["prompt"].encode()) / 2**64
            self.rows["test" if place < test else "val" if place < test + val else "train"].append(row)
        if not self.rows["train"]:
            raise ValueError(f"{file} has no row to train on.")
        self.fields = frozenset({"key", "image", "prompt", "product"})

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
                    record[field] = decoded(image, field, source.size, source.fit)
        except ValueError as error:
            file = f"{error.file}: " if isinstance(error, RowError) else ""
            raise ValueError(f"{source.table.path}, row {row.number} ({row.key}): {file}{error}.") from None
        record.setdefault("product", np.zeros((4, source.size, source.size), np.uint8))
        if row.cells.get("kind") == "negative":
            record["prompt"] = source.identifier + record["prompt"]
        return record
