"""The images and prompts of RichHF-18K out of parquet files: `python -m src.data.richhf_parquet PARQUET FOLDER`.

A row group holds hundreds of images, and random access would read all of it for each image. Therefore the images are
copied once, to single files. Needs pyarrow: `pip install -e '.[richhf]'`.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from src.data.richhf_format import (
    FILES,
    IMAGES,
    MAP_FEATURES,
    PROMPTS,
    SCORE_FEATURES,
    WORDS_FEATURE,
    read_prompts,
    serialized,
    uid,
    write_prompts,
)
from src.data.tfrecord import TFRecordFile, write_tfrecord
from src.runtime.command import example_command
from src.runtime.files import atomic
from src.runtime.progress import progress_bar

PICKAPIC = ("image_0_uid", "image_1_uid", "jpg_0", "jpg_1", "caption")
JOINED = ("filename", "image", *SCORE_FEATURES, *MAP_FEATURES, WORDS_FEATURE)  # and caption or prompt
MAGIC = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}
SPLIT_NAMES = {"train": "train", "dev": "val", "val": "val", "validation": "val", "test": "test"}


def collect(parquet: str, folder: str) -> Path:
    """Completes `folder` for `data=richhf` by copying images, prompts and labels out of parquet files.

    `parquet`: a file or folder of Pick-a-Pic v1, all of it or some files at a time; `folder` has the TFRecord files of
    the release and gets the images and prompts of their uids. Or a mirror that has joined them: `folder` gets the
    TFRecord files too, and the files of `parquet` are named by their split (train, dev or validation, test).

    Raises ValueError for other columns, naming file and row for a value that cannot be used, and if pyarrow is missing.
    """
    place, root = Path(parquet), Path(folder)
    files = [place] if place.is_file() else sorted(place.rglob("*.parquet"))
    if not files:
        raise ValueError(f"{parquet}: there are no parquet files.")
    columns = set(_open(files[0]).schema_arrow.names)
    (root / IMAGES).mkdir(parents=True, exist_ok=True)
    prompts = read_prompts(root / PROMPTS) if (root / PROMPTS).exists() else {}
    if columns.issuperset(PICKAPIC):
        wanted = _uids(root)
        there = {uid(name) for name in os.listdir(root / IMAGES)}
        with progress_bar(len(files), unit="file") as bar:
            for file in files:
                _copy(file, root / IMAGES, wanted, there, prompts)
                bar.update()
        print(f"{len(prompts.keys() & wanted)} of {len(wanted)} images are there")
    elif columns.issuperset(JOINED) and columns & {"caption", "prompt"}:
        _convert(files, place, root, prompts)
    else:
        needs = f"Pick-a-Pic's {', '.join(PICKAPIC)} nor {', '.join(JOINED)}, caption"
        raise ValueError(f"{files[0]}: it has neither {needs}, but {', '.join(sorted(columns))}.")
    write_prompts(root / PROMPTS, prompts)
    return root


def _open(file: Path) -> Any:
    try:
        import pyarrow.parquet as pq  # optional, 50 MB
    except ImportError:
        raise ValueError("reading parquet files needs pyarrow: pip install -e '.[richhf]'.") from None
    try:
        return pq.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: no parquet file ({error}).") from None


def _uids(root: Path) -> set[str]:
    """The uids that the TFRecord files in a folder name."""
    found = set()
    for file in (root / name for name in FILES.values() if (root / name).is_file()):
        records = TFRecordFile(file, strict=False)
        for number in range(len(records)):
            with suppress(ValueError):  # the reader tells it
                names = records.example(number).get("filename", [])
                found |= {uid(name.decode()) for name in names if isinstance(name, bytes)}
    if not found:
        raise ValueError(f"{root}: there is none of {', '.join(FILES.values())}, the files of the release.")
    return found


def _copy(file: Path, images: Path, wanted: set[str], there: set[str], prompts: dict[str, str]) -> None:
    """Copies the wanted images of a file of Pick-a-Pic that are not `there` yet, and adds the prompts of all."""
    table = _open(file)
    for group in range(table.num_row_groups):
        texts = table.read_row_group(group, columns=["image_0_uid", "image_1_uid", "caption"]).to_pydict()
        for side in (0, 1):
            rows = {name: row for row, name in enumerate(texts[f"image_{side}_uid"]) if name in wanted}
            prompts.update({name: texts["caption"][row] for name, row in rows.items()})
            rows = {name: row for name, row in rows.items() if name not in there}
            if rows:
                column = table.read_row_group(group, columns=[f"jpg_{side}"]).column(0)
                for name, row in rows.items():
                    _save(images, name, column[row].as_py(), f"{file}, row group {group}, row {row}")
                there |= rows.keys()


def _convert(files: list[Path], place: Path, root: Path, prompts: dict[str, str]) -> None:
    """Writes images and TFRecord files from a joined mirror."""
    parts: dict[str, list[Path]] = {}
    for file in files:
        names = re.findall(r"[a-z]+", str(file.relative_to(place if place.is_dir() else place.parent)).lower())
        split = next((SPLIT_NAMES[name] for name in reversed(names) if name in SPLIT_NAMES), None)
        if split is None:
            raise ValueError(
                f"{file}: cannot infer the split from the file name, which has none of {', '.join(SPLIT_NAMES)}."
            )
        if (root / FILES[split]).exists():
            raise ValueError(f"{root / FILES[split]} exists; choose another folder.")
        parts.setdefault(split, []).append(file)
    with progress_bar(len(files), unit="file") as bar:
        for split, some in parts.items():
            write_tfrecord(root / FILES[split], _records(some, root / IMAGES, prompts, bar.update))


def _records(files: list[Path], images: Path, prompts: dict[str, str], done: Callable[[], object]) -> Iterator[bytes]:
    """The records in some files; `done` is called after each file."""
    for file in files:
        table, number = _open(file), 0
        prompt = "caption" if "caption" in table.schema_arrow.names else "prompt"
        for batch in table.iter_batches(batch_size=16, columns=[*JOINED, prompt]):
            for row in batch.to_pylist():
                where, number = f"{file}, row {number}", number + 1
                try:
                    name, label = row["filename"], row[WORDS_FEATURE]
                    scores = [value[0] if isinstance(value, list) else value for value in map(row.get, SCORE_FEATURES)]
                    label = label.decode() if isinstance(label, bytes) else label
                    words = label if isinstance(label, str) else " ".join(map(str, label))
                    record = serialized(name, [_bytes(row[field]) for field in MAP_FEATURES], scores, words)
                except (TypeError, AttributeError, ValueError) as error:
                    raise ValueError(f"{where}: not a record of RichHF-18K ({error}).") from None
                prompts[uid(name)] = row[prompt]
                _save(images, uid(name), row["image"], where)
                yield record
        done()


def _bytes(value: Any) -> bytes:
    """An encoded image, as bytes or as the hub's data sets store it."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise TypeError(f"an image is {type(data).__name__}, not bytes")
    return data


def _save(images: Path, name: str, value: Any, where: str) -> None:
    try:
        data = _bytes(value)
    except TypeError as error:
        raise ValueError(f"{where}, '{name}': {error}.") from None
    suffix = next((suffix for magic, suffix in MAGIC.items() if data.startswith(magic)), None)
    if suffix is None:
        raise ValueError(f"{where}, '{name}': the image is neither PNG nor JPEG nor WebP.")
    with atomic(images / f"{name}{suffix}") as part:
        part.write_bytes(data)


if __name__ == "__main__":
    sys.exit(example_command("src.data.richhf_parquet", collect))
