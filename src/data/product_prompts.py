"""Products to be advertised: a folder of images with alpha and a file of prompts, put on the generator's canvas."""

import math
import re
import warnings
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image

from src.data.images import BROKEN, SUFFIXES, VISIBLE, channels_first, in_mode, opened, reason
from src.data.tables import NOT_UTF8, SEPARATORS, TableReader

SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, in file names or JSON with broken text


class ProductError(ValueError):
    """Why no image can be generated for a product; the others can."""


@dataclass(frozen=True)
class ProductPrompt:
    """One image to generate: the product's key (its file's stem), file, prompt and title ("" if there is none)."""

    key: str
    file: Path
    prompt: str
    title: str = ""

    @property
    def stamp(self) -> str:
        """A hash of the file's bytes, prompt and title."""
        told = f"{self.prompt}\0{self.title}\0".encode(errors="surrogatepass")
        return blake2b(told + self.file.read_bytes(), digest_size=8).hexdigest()

    def check(self) -> None:
        """Raises ProductError for a text that is not UTF-8, and if there is no prompt."""
        for name, text in (("name", self.key), ("prompt", self.prompt), ("title", self.title)):
            if SURROGATE.search(text):
                raise ProductError(f"the {name} is not valid UTF-8")
        if not self.prompt:
            raise ProductError("no prompt")


def read_product_prompts(products: str | Path, prompts: str | Path) -> list[ProductPrompt]:
    """The folder's images in the order of their names, each with its prompt.

    `prompts` is a CSV, TSV or JSONL table with the columns key and prompt, and maybe title; or a .txt file of prompts,
    one per line, which the products take in turn. A key may be a file's whole name. A product that the table does not
    name has the prompt "". Files that begin with a dot are ignored. Warns of keys without an image and of images of
    other kinds. Raises ValueError if there is no folder, image or prompt, for two images of one stem, for a malformed
    table, for a key that it has twice, and if it names none of the products.
    """
    folder, file = Path(products), Path(prompts)
    if not folder.is_dir():
        raise ValueError(f"products={products}: folder not found.")
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    others = [path.name for path in files if path.suffix.lower() in Image.registered_extensions().keys() - {*SUFFIXES}]
    _warn(f"products={products}: not read, as no {', '.join(SUFFIXES)}", others)
    by_key: dict[str, Path] = {}
    for path in (path for path in files if path.suffix.lower() in SUFFIXES):
        if (other := by_key.setdefault(path.stem, path)) != path:
            raise ValueError(f"products={products}: {other.name} and {path.name} have one key, {path.stem}.")
    if not by_key:
        raise ValueError(f"products={products}: there is no image ({', '.join(SUFFIXES)}).")
    if not file.is_file():
        raise ValueError(f"prompts={prompts}: file not found.")
    if file.suffix.lower() == ".txt":
        try:
            lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(f"prompts={prompts}: no UTF-8 text: {error}.") from None
        if not lines:
            raise ValueError(f"prompts={prompts}: it has no prompt.")
        return [ProductPrompt(key, path, lines[n % len(lines)]) for n, (key, path) in enumerate(by_key.items())]
    if file.suffix.lower() not in SEPARATORS:
        raise ValueError(f"prompts={prompts}: {', '.join(SEPARATORS)} or .txt is needed, not '{file.suffix}'.")
    told: dict[str, dict[str, str]] = {}
    for line, cells, problem in TableReader(file, ("key", "prompt")):
        if problem and problem != NOT_UTF8:  # which fails its own product only
            raise ValueError(f"{file}, line {line}: {problem}.")
        key = cells["key"].strip()
        if key in told:
            raise ValueError(f"{file}, line {line}: the key {key} is already in an earlier line.")
        told[key] = {name: text.strip() for name, text in cells.items()}
    for key, path in by_key.items():
        if key in told and path.name in told:
            raise ValueError(f"{file}: {key} and {path.name} are one product, and it is there twice.")
    rows = {key: told.get(key) or told.get(path.name) or {} for key, path in by_key.items()}
    if not any(rows.values()):
        such = f", such as {next(iter(told))}," if told else ""
        raise ValueError(
            f"{file}: none of its {len(told)} keys{such} names an image of {folder}, such as {next(iter(by_key))}."
        )
    unused = told.keys() - by_key - {path.name for path in by_key.values()}
    _warn(f"{file}: keys without an image in {folder}", sorted(unused))
    return [
        ProductPrompt(key, path, rows[key].get("prompt", ""), rows[key].get("title", ""))
        for key, path in by_key.items()
    ]


def _warn(what: str, names: list[str]) -> None:
    if names:
        warnings.warn(f"{what}: {', '.join(names[:5])} ({len(names)} in all).", stacklevel=3)


def placed(file: Path, size: int, scale: float = 0.5, centre: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """The product on an empty canvas: uint8 RGBA (4, size, size).

    scale: the longer side of the box of its visible pixels over the canvas's; centre: of that box, in canvas sides from
    left and top. What fades beyond the box fades on the canvas, too. Raises ProductError for a file that is no image,
    has no alpha or shows nothing, and for a box that would leave the canvas; ValueError for a size, scale or centre
    that fits no product.
    """
    if size < 1 or not 0 < scale <= 1:
        raise ValueError(f"size={size} must be at least 1 px, scale={scale} above 0 and at most 1.")
    if len(centre) != 2 or not all(isinstance(share, int | float) for share in centre):
        raise ValueError(f"centre={list(centre)}: two numbers are needed, across and down.")
    try:
        image = in_mode(opened(file.read_bytes(), "product"), "RGBA")
    except BROKEN as error:
        raise ProductError(reason(error)) from None
    alpha = np.asarray(image)[..., 3]
    visible, seen = ([_span(mask, axis) for axis in (0, 1)] for mask in (alpha >= VISIBLE, alpha > 0))
    zoom = scale * size / max(end - start for start, end in visible)
    source, target = [], []  # of the pixels seen, across and down: start and end
    for (start, end), (first, last), share in zip(visible, seen, centre, strict=True):
        side = max(1, round((end - start) * zoom))
        place, ratio = round(share * size - side / 2), side / (end - start)
        if place < 0 or place + side > size:
            raise ProductError(f"scale={scale} and centre={list(centre)} put it beyond the canvas")
        before = min(place, math.ceil((start - first) * ratio))
        after = min(size - place - side, math.ceil((last - end) * ratio))
        source.append((start - before / ratio, end + after / ratio))
        target.append((place - before, place + side + after))
    (left, right), (top, bottom) = source
    x, y = math.floor(left), math.floor(top)
    cut = image.crop((x, y, math.ceil(right), math.ceil(bottom)))  # transparent beyond the image
    inner = tuple(end - start for start, end in target)
    canvas = Image.new("RGBA", (size, size))
    canvas.paste(
        cut.resize(inner, Image.Resampling.BILINEAR, (left - x, top - y, right - x, bottom - y)),
        (target[0][0], target[1][0]),
    )
    return channels_first(canvas)


def _span(mask: np.ndarray, axis: int) -> tuple[int, int]:
    """Start and end of the columns (axis 0) or rows (axis 1) in which a mask is true."""
    found = np.flatnonzero(mask.any(axis))
    return int(found[0]), int(found[-1]) + 1
