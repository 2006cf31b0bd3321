"""A folder of your own products as a data set, to tune a generator on: `data=products`.

`python -m src.data.products DIR` makes such a folder of the showroom's products.
"""

import csv
import sys
from pathlib import Path

from PIL import Image

from src.data.batch import Record
from src.data.product_prompts import ProductError, ProductPrompt, placed, read_product_prompts
from src.data.showroom.world import GROUPS, Showroom, group_of
from src.data.splits import SPLITS, Source, Split, digest, stamp
from src.runtime.command import example_command
from src.runtime.files import new_folder


class Products(Source):
    """Product images with prompts (see `read_product_prompts`) as a data set to tune a generator on.

    Records have key, prompt, product, and title if the prompts have it. At least one product in `val` and one in `test`
    (shares, chosen by a hash of the key), the rest trains. `size`, `scale`, `centre`: see `placed`.

    All are opened once at the start. Raises ValueError naming the products without a prompt, or without a title where
    others have one, and those that cannot be placed.
    """

    classes = ()
    about = "a folder of product images and prompts; a hash of their names decides which are test rows."

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
        found = sorted(read_product_prompts(folder, prompts), key=lambda order: stamp(order.key.encode()))
        titled = any(order.title for order in found)
        for field, wanted in (("prompt", True), ("title", titled)):
            if lacking := [order.file.name for order in found if wanted and not getattr(order, field)]:
                raise ValueError(f"{prompts}: no {field} for {', '.join(lacking[:5])} ({len(lacking)} in all).")
        rows, bad = PlacedProducts(found, size, scale, centre), []
        for index in range(len(rows)):
            try:
                rows[index]
            except ProductError as error:
                bad.append(str(error))
        if bad:
            raise ValueError(f"{len(bad)} of {len(found)} products cannot be placed: {' '.join(bad[:5])}")
        last = max(1, round(test * len(found)))
        first = last + max(1, round(val * len(found)))
        if min(val, test) < 0 or first >= len(found):
            raise ValueError(f"{folder}: val={val}, test={test} leave none of its {len(found)} products to train on.")
        self.found = {"test": found[:last], "val": found[last:first], "train": found[first:]}
        self.fields = frozenset({"key", "prompt", "product"} | ({"title"} if titled else set()))
        self.size, self.scale, self.centre = size, scale, centre

    def split(self, name: str) -> "PlacedProducts":
        return PlacedProducts(self.found[name], self.size, self.scale, self.centre)

    def fingerprint(self) -> str:
        """Of keys, prompts, titles and the bytes of the images by split."""
        return digest(part for orders in self.found.values() for order in orders for part in (order.key, order.stamp))


class PlacedProducts(Split):
    """Records of product prompts."""

    def __init__(self, found: list[ProductPrompt], size: int, scale: float, centre: tuple[float, float]) -> None:
        self.found, self.size, self.scale, self.centre = found, size, scale, centre

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> Record:
        order = self.found[index]
        try:
            order.check()
            product = placed(order.file, self.size, self.scale, self.centre)
        except ProductError as error:
            raise ProductError(f"{order.file}: {error}.") from None
        return {"key": order.key, "prompt": order.prompt, "title": order.title, "product": product}


def write_example(out: str | Path, count: int = 32, size: int = 256, split: str = "test") -> Path:
    """`count` of the showroom's products, those of its `split`, to try `src.generate` and `data=products` with.

    products/ has cut-outs with alpha on canvases of `size` px, prompts.csv key, prompt and title of each. Raises
    ValueError if `out` is not empty.
    """
    if count < 1 or size < 32:
        raise ValueError(f"count={count} must be at least 1, size={size} at least 32.")
    if split not in SPLITS:
        raise ValueError(f"split={split}: choose one of {', '.join(SPLITS)}.")
    out = new_folder(out)
    (out / "products").mkdir()
    rows = Showroom({split: max(GROUPS) * count}, size, holds=["prompt", "title", "product"]).split(split)
    briefs = [index for index in range(len(rows)) if group_of(index)[1] == 0][:count]  # not several tries at one
    with (out / "prompts.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["key", "prompt", "title"], extrasaction="ignore")
        table.writeheader()
        for record in (rows[index] for index in briefs):
            Image.fromarray(record["product"].transpose(1, 2, 0)).save(out / "products" / f"{record['key']}.png")
            table.writerow(record)
    return out


if __name__ == "__main__":
    sys.exit(example_command("src.data.products", write_example))
