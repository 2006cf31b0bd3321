"""Pick-a-Pic's parquet files: `python -m src.data.pickapic PARQUET IMAGES` copies the images of the labelled pairs.

Kirstain et al., "Pick-a-Pic", NeurIPS 2023, arXiv 2305.01569. A row group holds hundreds of images, and random access
would read all of it for each image. Therefore the images are copied once, to single files. Needs pyarrow:
`pip install -e '.[richhf]'`.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.data.richhf_format import uid
from src.runtime.command import example_command
from src.runtime.files import atomic
from src.runtime.progress import progress_bar

IMAGES = ("image_0_uid", "image_1_uid", "jpg_0", "jpg_1", "caption")  # columns that `copy_images` reads
LABELS = ("caption", "image_0_uid", "image_1_uid", "label_0", "label_1", "has_label", "num_example_per_prompt")
MAGIC = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}


def collect(parquet: str, images: str) -> Path:
    """Copies the images of the labelled pairs of a parquet file, or of all in a folder, to `images`/<uid>.jpg.

    Images that are there are not copied again. Raises ValueError for other columns, and naming file and row for an
    image that is none.
    """
    files, folder = parquet_files(parquet), Path(images)
    folder.mkdir(parents=True, exist_ok=True)
    there = {uid(name) for name in os.listdir(folder)}
    with progress_bar(len(files), unit="file") as bar:
        for file in files:
            wanted = {pair[f"image_{side}_uid"] for _, pair in labelled_pairs(file) for side in (0, 1)}
            copy_images(file, folder, wanted, there)
            bar.update()
    return folder


def labelled_pairs(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows whose pair has a label, with their number from 1: the columns LABELS.

    Raises ValueError naming the columns that are missing.
    """
    table = open_parquet(file, LABELS)
    rows = (row for batch in table.iter_batches(columns=list(LABELS)) for row in batch.to_pylist())
    return ((number, row) for number, row in enumerate(rows, start=1) if row["has_label"])


def copy_images(file: Path, folder: Path, wanted: set[str], there: set[str]) -> dict[str, str]:
    """Copies the `wanted` images of a file, by uid, that are not `there` yet, and adds them to `there`.

    The captions of all `wanted` images of the file.
    """
    table, captions = open_parquet(file, IMAGES), {}
    for group in range(table.num_row_groups):
        texts = table.read_row_group(group, columns=["image_0_uid", "image_1_uid", "caption"]).to_pydict()
        for side in (0, 1):
            rows = {name: row for row, name in enumerate(texts[f"image_{side}_uid"]) if name in wanted}
            captions |= {name: texts["caption"][row] for name, row in rows.items()}
            rows = {name: row for name, row in rows.items() if name not in there}
            if rows:
                column = table.read_row_group(group, columns=[f"jpg_{side}"]).column(0)
                for name, row in rows.items():
                    save_image(folder, name, column[row].as_py(), f"{file}, row group {group}, row {row}")
                there |= rows.keys()
    return captions


def parquet_files(place: str | Path) -> list[Path]:
    """A file, or all of a folder. Raises ValueError if there is none."""
    place = Path(place)
    files = [place] if place.is_file() else sorted(place.rglob("*.parquet"))
    if not files:
        raise ValueError(f"{place}: there are no parquet files.")
    return files


def open_parquet(file: Path, needs: tuple[str, ...] = ()) -> Any:
    """A pyarrow.parquet.ParquetFile. Raises ValueError for another file, a missing column, and without pyarrow."""
    try:
        import pyarrow.parquet as pq  # optional, 50 MB
    except ImportError:
        raise ValueError("reading parquet files needs pyarrow: pip install -e '.[richhf]'.") from None
    try:
        table = pq.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: no parquet file ({error}).") from None
    names = table.schema_arrow.names
    if missing := [name for name in needs if name not in names]:
        raise ValueError(f"{file}: the column {', '.join(missing)} is missing; there is {', '.join(sorted(names))}.")
    return table


def image_bytes(value: Any) -> bytes:
    """An encoded image, as bytes or as the hub's data sets store it. Raises TypeError."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise TypeError(f"an image is {type(data).__name__}, not bytes")
    return data


def save_image(folder: Path, name: str, value: Any, where: str) -> None:
    """Writes an image to `folder`/<name> with the suffix of its format. Raises ValueError naming `where`."""
    try:
        if not name or Path(name).name != name:
            raise TypeError("the uid is no file name")
        data = image_bytes(value)
    except TypeError as error:
        raise ValueError(f"{where}, '{name}': {error}.") from None
    suffix = next((suffix for magic, suffix in MAGIC.items() if data.startswith(magic)), None)
    if suffix is None:
        raise ValueError(f"{where}, '{name}': the image is neither PNG nor JPEG nor WebP.")
    with atomic(folder / f"{name}{suffix}") as part:
        part.write_bytes(data)


if __name__ == "__main__":
    sys.exit(example_command("src.data.pickapic", collect))
