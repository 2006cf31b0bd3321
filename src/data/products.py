"""Products to be advertised: a folder of pictures with alpha and a file of prompts, put on the generator's canvas."""

import argparse
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from src.data.batch import Record
from src.data.pictures import BROKEN, opened, reason, resized
from src.data.rows import SEPARATORS, csv_rows, json_rows
from src.data.showroom.world import GROUPS, Showroom, group_of
from src.data.splits import SPLITS, stamp
from src.data.table import SUFFIXES

VISIBLE = 128  # alpha from which a pixel belongs to the product


class OrderError(ValueError):
    """Why a product cannot be painted; the rest can."""


@dataclass(frozen=True)
class Order:
    """One picture to paint: the product's key (its file's stem), file, prompt and title ("" if there is none)."""

    key: str
    file: Path
    prompt: str
    title: str = ""

    @property
    def stamp(self) -> str:
        """A hash of the file's bytes, prompt and title."""
        told = f"{self.prompt}\0{self.title}\0".encode(errors="surrogatepass")
        return blake2b(told + self.file.read_bytes(), digest_size=8).hexdigest()


class Products:
    """A folder of product pictures and a file of prompts (see `orders`) as a data set, to tune a generator on.

    Records have key, prompt, product, and title if the prompts have it. At least one product in `val` and one in `test`
    (shares; which ones, their keys' hashes say), the rest trains. `size`, `scale`, `centre`: see `placed`.

    Raises ValueError naming the products without a prompt, or without a title where others have one, and a product that
    cannot be placed when it is asked for.
    """

    classes = ()
    about = "a folder of product pictures and prompts; which of them are test rows, a hash of their names decides."

    def __init__(
        self,
        folder: str | Path,
        prompts: str | Path,
        size: int,
        scale: float = 0.5,
        centre: tuple[float, float] = (0.5, 0.5),
        val: float = 0.1,
        test: float = 0.1,
    ) -> None:
        found = sorted(orders(folder, prompts), key=lambda order: stamp(order.key.encode()))
        titled = any(order.title for order in found)
        for field, wanted in (("prompt", True), ("title", titled)):
            if lacking := [order.file.name for order in found if wanted and not getattr(order, field)]:
                raise ValueError(f"{prompts}: no {field} for {', '.join(lacking[:5])} ({len(lacking)} in all).")
        last = max(1, round(test * len(found)))
        first = last + max(1, round(val * len(found)))
        if min(val, test) < 0 or first >= len(found):
            raise ValueError(f"{folder}: val={val}, test={test} leave none of its {len(found)} products to train on.")
        self.found = {"test": found[:last], "val": found[last:first], "train": found[first:]}
        self.fields = frozenset({"key", "prompt", "product"} | ({"title"} if titled else set()))
        self.size, self.scale, self.centre = size, scale, centre

    def split(self, name: str) -> "PlacedProducts":
        """The products of "train", "val" or "test"."""
        if name not in SPLITS:
            raise ValueError(f"No split {name!r}; choose from {', '.join(SPLITS)}.")
        return PlacedProducts(self.found[name], self.size, self.scale, self.centre)


class PlacedProducts:
    """Records of orders."""

    def __init__(self, found: list[Order], size: int, scale: float, centre: tuple[float, float]) -> None:
        self.found, self.size, self.scale, self.centre = found, size, scale, centre

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> Record:
        order = self.found[index]
        try:
            product = placed(order.file, self.size, self.scale, self.centre)
        except OrderError as error:
            raise ValueError(f"{order.file}: {error}.") from None
        return {"key": order.key, "prompt": order.prompt, "title": order.title, "product": product}


def orders(products: str | Path, prompts: str | Path) -> list[Order]:
    """The folder's pictures in the order of their names, each with its prompt.

    `prompts` is a CSV, TSV or JSONL table with the columns key and prompt, and maybe title; or a .txt file of prompts,
    one a line, which the products take in turn. Raises ValueError if there is no folder, picture or prompt at all, for
    two pictures of one stem, for a torn table and for a key that it has twice; a product that the table does not name
    has the prompt "", and what it names besides the products is left alone. A key may be a file's whole name.
    """
    folder, file = Path(products), Path(prompts)
    if not folder.is_dir():
        raise ValueError(f"products={products}: there is no such folder.")
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not pictures:
        raise ValueError(f"products={products}: no picture ({', '.join(SUFFIXES)}) lies there.")
    by_key: dict[str, Path] = {}
    for path in pictures:
        if path.stem in by_key:
            raise ValueError(
                f"products={products}: {by_key[path.stem].name} and {path.name} have one key, {path.stem}."
            )
        by_key[path.stem] = path
    if not file.is_file():
        raise ValueError(f"prompts={prompts}: there is no such file.")
    if file.suffix.lower() == ".txt":
        lines = [line.strip() for line in _text(file).splitlines() if line.strip()]
        if not lines:
            raise ValueError(f"prompts={prompts}: it has no prompt.")
        return [Order(key, path, lines[n % len(lines)]) for n, (key, path) in enumerate(by_key.items())]
    told: dict[str, dict[str, str]] = {}
    for line, row in _table(file):
        if row["key"] in told:
            raise ValueError(f"{file}, line {line}: the key {row['key']} stands in an earlier line already.")
        told[row["key"]] = row
    rows = {key: told.get(key) or told.get(path.name) or {} for key, path in by_key.items()}
    return [Order(key, path, rows[key].get("prompt", ""), rows[key].get("title", "")) for key, path in by_key.items()]


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompts={file}: no UTF-8 text: {error}.") from None


def _table(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines' numbers and rows."""
    separator = SEPARATORS.get(file.suffix.lower())
    if not separator and file.suffix.lower() != ".jsonl":
        raise ValueError(f"prompts={file}: a .csv, .tsv, .jsonl or .txt file is needed, not '{file.suffix}'.")
    with io.StringIO(_text(file), newline="") as handle:
        for line, row, reason in csv_rows(handle, separator) if separator else json_rows(handle):
            if missing := [name for name in ("key", "prompt") if name not in row]:
                reason = reason or f"has no {' and no '.join(missing)}"
            if reason:
                raise ValueError(f"{file}, line {line}: {reason}.")
            yield line, {name: "" if value is None else str(value).strip() for name, value in row.items()}


def placed(file: Path, size: int, scale: float = 0.5, centre: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """The product cut to what is visible of it and laid on an empty canvas: uint8 RGBA (4, size, size).

    scale: its longer side over the canvas's; centre: of its box, in canvas sides from left and top. Raises OrderError
    for a file that is no picture, has no alpha or shows nothing, and for a product that would leave the canvas;
    ValueError for a size, scale or centre that fits no product.
    """
    if size < 1 or not 0 < scale <= 1 or len(centre) != 2:
        raise ValueError(f"size={size}, scale={scale}, centre={list(centre)}: above 0, in (0, 1], two numbers.")
    try:
        image = ImageOps.exif_transpose(opened(file.read_bytes(), "product").convert("RGBA"))
    except BROKEN as error:
        raise OrderError(reason(error)) from None
    solid = np.asarray(image)[..., 3] >= VISIBLE
    if not solid.any():
        raise OrderError(f"its alpha is empty: nowhere above {VISIBLE - 1} of 255")
    down, across = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    cut = image.crop((int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1))
    zoom = scale * size / max(cut.size)
    small = resized(cut, tuple(max(1, round(side * zoom)) for side in cut.size))
    left, top = (round(c * size - side / 2) for c, side in zip(centre, small.size, strict=True))
    if left < 0 or top < 0 or left + small.width > size or top + small.height > size:
        raise OrderError(f"scale={scale} and centre={list(centre)} put it beyond the canvas")
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(small, (left, top))
    return np.ascontiguousarray(np.asarray(canvas).transpose(2, 0, 1))


def write_example(out: str | Path, count: int = 32, size: int = 256) -> Path:
    """`count` of the showroom's test products, to try `src.generate` and `data=products` with.

    products/ has cut-outs with alpha on canvases of `size` px, prompts.csv key, prompt and title of each.
    """
    out = Path(out)
    (out / "products").mkdir(parents=True, exist_ok=True)
    rows = Showroom({"test": max(GROUPS) * count}, size, holds=["prompt", "title", "product"]).split("test")
    briefs = [index for index in range(len(rows)) if group_of(index)[1] == 0][:count]  # not several tries at one
    with (out / "prompts.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["key", "prompt", "title"], extrasaction="ignore")
        table.writeheader()
        for record in (rows[index] for index in briefs):
            Image.fromarray(record["product"].transpose(1, 2, 0)).save(out / "products" / f"{record['key']}.png")
            table.writerow(record)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m src.data.products", description=write_example.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--size", type=int, default=256)
    words = parser.parse_args()
    print(f"{write_example(words.out, words.count, words.size)}: {words.count} products")


if __name__ == "__main__":
    main()
