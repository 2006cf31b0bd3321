"""The images and prompts of RichHF-18K out of parquet files: `python -m src.data.richhf_parquet PARQUET FOLDER`.

Needs pyarrow: `pip install -e '.[richhf]'`.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from src.data.pickapic import IMAGES as PICKAPIC
from src.data.pickapic import copy_images, image_bytes, open_parquet, parquet_files, save_image
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
from src.runtime.progress import progress_bar

JOINED = ("filename", "image", *SCORE_FEATURES, *MAP_FEATURES, WORDS_FEATURE)  # and caption or prompt
SPLIT_NAMES = {"train": "train", "dev": "val", "val": "val", "validation": "val", "test": "test"}


def collect(parquet: str, folder: str) -> Path:
    """Completes `folder` for `data=richhf` by copying images, prompts and labels out of parquet files.

    `parquet`: a file or folder of Pick-a-Pic v1, all of it or some files at a time; `folder` has the TFRecord files of
    the release and gets the images and prompts of their uids. Or a mirror that has joined them: `folder` gets the
    TFRecord files too, and the files of `parquet` are named by their split (train, dev or validation, test).

    Raises ValueError for other columns, naming file and row for a value that cannot be used, and if pyarrow is missing.
    """
    place, root, files = Path(parquet), Path(folder), parquet_files(parquet)
    columns = set(open_parquet(files[0]).schema_arrow.names)
    (root / IMAGES).mkdir(parents=True, exist_ok=True)
    prompts = read_prompts(root / PROMPTS) if (root / PROMPTS).exists() else {}
    if columns.issuperset(PICKAPIC):
        wanted = _uids(root)
        there = {uid(name) for name in os.listdir(root / IMAGES)}
        with progress_bar(len(files), unit="file") as bar:
            for file in files:
                prompts |= copy_images(file, root / IMAGES, wanted, there)
                bar.update()
        print(f"{len(prompts.keys() & wanted)} of {len(wanted)} images are there")
    elif columns.issuperset(JOINED) and columns & {"caption", "prompt"}:
        _convert(files, place, root, prompts)
    else:
        needs = f"Pick-a-Pic's {', '.join(PICKAPIC)} nor {', '.join(JOINED)}, caption"
        raise ValueError(f"{files[0]}: it has neither {needs}, but {', '.join(sorted(columns))}.")
    write_prompts(root / PROMPTS, prompts)
    return root


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
        table, number = open_parquet(file), 0
        prompt = "caption" if "caption" in table.schema_arrow.names else "prompt"
        for batch in table.iter_batches(batch_size=16, columns=[*JOINED, prompt]):
            for row in batch.to_pylist():
                where, number = f"{file}, row {number}", number + 1
                try:
                    name, label = row["filename"], row[WORDS_FEATURE]
                    scores = [value[0] if isinstance(value, list) else value for value in map(row.get, SCORE_FEATURES)]
                    label = label.decode() if isinstance(label, bytes) else label
                    words = label if isinstance(label, str) else " ".join(map(str, label))
                    record = serialized(name, [image_bytes(row[field]) for field in MAP_FEATURES], scores, words)
                except (TypeError, AttributeError, ValueError) as error:
                    raise ValueError(f"{where}: not a record of RichHF-18K ({error}).") from None
                prompts[uid(name)] = row[prompt]
                save_image(images, uid(name), row["image"], where)
                yield record
        done()


if __name__ == "__main__":
    sys.exit(example_command("src.data.richhf_parquet", collect))
