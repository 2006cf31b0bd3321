"""Positive, negative and regularization images in one data set: `data=identified`.

The data of Wu et al., "Better Aligning Text-to-Image Models with Human Preference" (ICCV 2023, arXiv 2303.14420): an
identifier before the prompts of bad images binds what people dislike to itself, and sampling with it as negative
prompt avoids that.
"""

import warnings
from pathlib import Path

from src.data.batch import Record
from src.data.image_table import KINDS, ImageTable
from src.data.splits import SPLITS, Source, Split, digest


class Identified(Source):
    """Records have key, image, prompt and product. The identifier is before the prompts of negative images only.

    Args:
        table: positive and negative images, as `src.select rule=softmax` writes them; not read if share is 1.
        size, fit, val, test: see `ImageTable`, for both tables.
        regularization: a table or folder of good images with their prompts, which keep the generator what it was
            (the paper: LAION images of an aesthetic score above 6.5); not read if share is 0.
        share: of the regularization images among the training rows, in [0, 1]; 1: the paper's comparison with tuning on
            them alone. An epoch has every row; the part that is too small for its share is repeated. None: every row
            once, as in the paper.
        identifier: the paper's is "Weird image. ", with the blank.

    Keys are `selected/<key>` and `regularization/<key>`. Rows are checked at the start, files when they are read.
    Raises ValueError naming table and row, and for a table without positive or without negative training rows.
    """

    classes = ()

    def __init__(
        self,
        table: str | Path | None,
        size: int,
        regularization: str | Path | None = None,
        share: float | None = None,
        identifier: str = "Weird image. ",
        fit: str = "squash",
        val: float = 0.05,
        test: float = 0.05,
    ) -> None:
        if not identifier.strip():
            raise ValueError(f"identifier={identifier!r}: a text is needed that marks negative images.")
        if share is not None and not 0 <= share <= 1:
            raise ValueError(f"share={share} must be in [0, 1], or null.")
        wanted = {"selected": (table, share != 1), "regularization": (regularization, share != 0)}
        self.share, self.parts = share, dict[str, ImageTable]()
        for (name, (place, used)), option in zip(wanted.items(), ("table", "regularization"), strict=True):
            if used and not place:
                raise ValueError(f"{option}=null, but share={'null' if share is None else share}: a table is needed.")
            if used and place:
                self.parts[name] = ImageTable(place, size, fit, identifier if name == "selected" else "", val, test)
        kinds = [row.cells.get("kind") for row in self.parts["selected"].rows["train"]] if share != 1 else []
        for kind in KINDS if share != 1 else ():
            if kind not in kinds:
                raise ValueError(f"{table}: none of {len(kinds)} training rows has kind={kind}; src.select writes it.")
        with_products = [part.products for part in self.parts.values()]
        if any(with_products) and not all(with_products):
            lacking = table if with_products[1] else regularization
            warnings.warn(f"{lacking} has no products: its images are trained without outline.", stacklevel=2)
        self.fields = frozenset({"key", "image", "prompt", "product"})
        counts = {kind: kinds.count(kind) for kind in KINDS if kinds}
        counts |= {name: len(part.rows["train"]) for name, part in self.parts.items() if name == "regularization"}
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        self.about = f"{told} training images; {identifier!r} is before the prompts of negative ones."

    def split(self, name: str) -> "IdentifiedRows":
        """The rows of "train", in the shares, or all of "val" or "test"."""
        if name not in SPLITS:
            raise ValueError(f"No split {name!r}; choose from {', '.join(SPLITS)}.")
        return IdentifiedRows(
            {part: table.split(name) for part, table in self.parts.items()}, self.share if name == "train" else None
        )

    def fingerprint(self) -> str:
        """Of both tables and their files."""
        return digest(part for name, table in self.parts.items() for part in (name, table.fingerprint()))


class IdentifiedRows(Split):
    """The rows of one or two parts, one part after the other; of two the second has the share."""

    def __init__(self, parts: dict[str, Split], share: float | None = None) -> None:
        self.parts = parts
        sizes = [len(rows) for rows in parts.values()]
        counts = epoch(sizes[0], sizes[1], share) if len(sizes) == 2 and share is not None else sizes
        self.places = [
            (name, row % size)
            for name, size, count in zip(parts, sizes, counts, strict=True)
            for row in range(count)
        ]  # fmt: skip

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Record:
        part, row = self.places[index]
        record = self.parts[part][row]
        return record | {"key": f"{part}/{record['key']}"}


def epoch(selected: int, regularization: int, share: float) -> tuple[int, int]:
    """How many rows of each an epoch has, so that `share`, in (0, 1), are for regularization and all rows occur."""
    wanted = selected * share / (1 - share)
    if wanted >= regularization:
        return selected, round(wanted)
    return round(regularization * (1 - share) / share), regularization
