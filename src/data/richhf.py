"""RichHF-18K: heat maps, scores and misaligned words of generated images, from human raters (`data=richhf`).

Liang et al., "Rich Human Feedback for Text-to-Image Generation", CVPR 2024, arXiv 2312.10240, section 3. The release,
https://github.com/google-research-datasets/richhf-18k, lacks the images and prompts, which are Pick-a-Pic's:
`src.data.richhf_parquet` adds them. `python -m src.data.richhf OUT` writes a small folder to try the reader on.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from src.data.batch import Record
from src.data.images import BROKEN, decoded, opened, reason
from src.data.quarantine import Quarantine
from src.data.richhf_format import (
    FILES,
    IMAGES,
    MAP_FEATURES,
    PROMPTS,
    SCORE_FEATURES,
    WORDS_FEATURE,
    find_images,
    parquet_hint,
    png,
    read_prompts,
    serialized,
    uid,
    write_prompts,
)
from src.data.showroom.world import Showroom
from src.data.splits import SPLITS, Source, Split, digest
from src.data.tfrecord import TFRecordFile, Values, write_tfrecord
from src.data.words import split_words
from src.runtime.command import example_command
from src.runtime.files import new_folder

CONSTANT = 10  # records from which on a score that never varies is a fault of the file


class Feedback(NamedTuple):
    """The labels and paths of a record; image and maps are read later. `number` counts from 0."""

    number: int
    key: str
    image: str
    prompt: str
    scores: np.ndarray
    aligned_words: list[int]


class RichHF(Source):
    """The records of the release, joined with images and prompts by the uid in their filename.

    Records have key (the filename), prompt, image; heatmaps, uint8 (2, size, size) in the order of HEAT_MAPS; scores,
    float32 (4,) in [0, 1] in the order of SCORES; aligned_words, 1 or 0 (misaligned) for each of `split_words(prompt)`.
    Images and maps are stretched to `size`, antialiased.

    Args:
        folder: with train.tfrecord, dev.tfrecord (the split val) and test.tfrecord, or some of these.
        images: folder of images <uid>.png, .jpg, ...; relative to `folder`.
        prompts: table with key (the uid) and prompt; relative to `folder`.
        size: in px.
        on_error: "raise" a ValueError at the first bad record, or "skip": bad records go to `quarantine` (JSON lines
            with file, line: the record's number, key and reason; None: quarantine.jsonl in `folder`) and out of the
            splits. A training record whose image or maps cannot be decoded is listed when it is read, and the next
            one takes its place, the same each time; one of val or test ends the run.

    Raises ValueError naming file, record (from 1) and filename for a record that is damaged or doubled, lacks image or
    prompt, has a score outside [0, 1], or not as many labels as words; and for a file with a score that never varies.
    """

    classes = ()
    fields = frozenset({"key", "prompt", "image", "heatmaps", "scores", "aligned_words"})
    about = "RichHF-18K (Liang et al., CVPR 2024), human feedback on images of Pick-a-Pic, or own data in its format."
    licence = "Other: trained on RichHF-18K, which states no license, and images of Pick-a-Pic; or on own data"

    def __init__(
        self,
        folder: str,
        images: str = IMAGES,
        prompts: str = PROMPTS,
        size: int = 384,
        on_error: str = "raise",
        quarantine: str | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error}: choose raise or skip.")
        if size < 1:
            raise ValueError(f"size={size} must be at least 1 px.")
        root = Path(folder).resolve()
        files = {split: root / name for split, name in FILES.items() if (root / name).is_file()}
        if not files:
            raise ValueError(f"{folder}: there is none of {', '.join(FILES.values())}{parquet_hint(root)}.")
        self.size, self.skip = size, on_error == "skip"
        self.quarantine = Quarantine(Path(quarantine or root / "quarantine.jsonl") if self.skip else None)
        self.images, self.prompts = find_images(root / images), read_prompts(root / prompts)
        self.joined = {root / images: self.images, root / prompts: self.prompts}
        self.seen: dict[str, str] = {}  # where each uid is
        self.records = {split: TFRecordFile(file, strict=not self.skip) for split, file in files.items()}
        self.rows = {split: self._read(records) for split, records in self.records.items()}
        self.quarantine.write()
        for split, rows in self.rows.items():
            if not rows:
                raise ValueError(f"{files[split]}: no usable records.")
            for name, values in zip(SCORE_FEATURES, np.stack([row.scores for row in rows]).T, strict=True):
                if len(rows) >= CONSTANT and np.ptp(values) == 0:
                    raise ValueError(
                        f"{files[split]}: {name} is {values[0]:g} in all {len(rows)} records: a bad copy of the data."
                    )

    def split(self, name: str) -> "Rows":
        """The records of "train", "val" or "test", in the order of the file."""
        if name not in self.rows:
            raise ValueError(f"No split {name!r}; there is {', '.join(self.rows)}.")
        return Rows(self, name)

    def fingerprint(self) -> str:
        """Of prompts, scores and labels by split."""
        rows = (row for rows in self.rows.values() for row in rows)
        return digest(repr(row._replace(image=Path(row.image).name)) for row in rows)

    def fault(self, file: Path, number: int, key: str, reason: str) -> None:
        """Raises ValueError for a bad record, or adds it to the quarantine file."""
        if not self.skip:
            raise ValueError(f"{file}, record {number + 1}, '{key}': {reason}.")
        self.quarantine(file, number + 1, key, reason)

    def _read(self, records: TFRecordFile) -> list[Feedback]:
        rows = []
        for number in range(len(records)):
            try:
                features = records.example(number)
            except ValueError as error:  # it names file, record and byte
                if not self.skip:
                    raise
                self.fault(records.path, number, "", str(error).rstrip("."))
                continue
            key = ""
            try:
                key = _text(features, "filename")
                rows.append(self._feedback(number, key, features))
                self.seen[uid(key)] = f"record {number + 1} of {records.path.name}"
            except ValueError as error:
                self.fault(records.path, number, key, str(error))
        if records.damage:
            self.fault(records.path, len(records), "", records.damage.rstrip("."))
        return rows

    def _feedback(self, number: int, key: str, features: Mapping[str, Values]) -> Feedback:
        name = uid(key)
        if name in self.seen:
            raise ValueError(f"it is also {self.seen[name]}")
        if missing := [str(place) for place, known in self.joined.items() if name not in known]:
            raise ValueError(f"nothing of this uid in {' and '.join(missing)}")
        scores = np.array([_value(features, feature, float) for feature in SCORE_FEATURES], np.float32)
        for feature, score in zip(SCORE_FEATURES, scores, strict=True):
            if not 0 <= score <= 1:
                raise ValueError(f"{feature} is {score:g}, not in [0, 1]")
        prompt, labels = self.prompts[name], _text(features, WORDS_FEATURE).split()
        if not set(labels) <= {"0", "1"}:
            raise ValueError(f"{WORDS_FEATURE} is {' '.join(labels)!r}, not of 0 and 1")
        if len(labels) != (count := len(split_words(prompt))):
            raise ValueError(f"{len(labels)} labels for the {count} words of {prompt!r}")
        return Feedback(number, key, self.images[name], prompt, scores, [int(label) for label in labels])

    def record(self, split: str, row: Feedback) -> Record:
        """Raises ValueError with the reason why the image or a map cannot be read."""
        features = self.records[split].example(row.number)
        maps = [_decoded(_value(features, name, bytes), "saliency", name, self.size) for name in MAP_FEATURES]
        try:
            image = _decoded(Path(row.image).read_bytes(), "image", row.image, self.size)
        except OSError as error:
            raise ValueError(f"{row.image}: {reason(error)}") from None
        known = {"key": row.key, "prompt": row.prompt, "scores": row.scores, "aligned_words": row.aligned_words}
        return {**known, "image": image, "heatmaps": np.concatenate(maps)}


class Rows(Split):
    """One split."""

    def __init__(self, source: RichHF, split: str) -> None:
        self.source, self.split, self.rows = source, split, source.rows[split]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        count, file = len(self), self.source.records[self.split].path
        for row in (self.rows[(range(count)[index] + step) % count] for step in range(count)):
            try:
                return self.source.record(self.split, row)
            except ValueError as error:
                if self.split != "train" or not self.source.skip:
                    raise ValueError(f"{file}, record {row.number + 1}, '{row.key}': {error}.") from None
                self.source.fault(file, row.number, row.key, str(error))
        raise ValueError(f"{file}: no record can be read, see {self.source.quarantine.path}.")

    def keys(self) -> list[str]:
        return [row.key for row in self.rows]


def _decoded(data: bytes, field: str, name: str, size: int) -> np.ndarray:
    try:
        return decoded(opened(data, field), field, size, "squash")
    except BROKEN as error:
        raise ValueError(f"{name}: {reason(error)}") from None


def _value(features: Mapping[str, Values], name: str, kind: type) -> Any:
    values = features.get(name, [])
    if len(values) != 1 or not isinstance(values[0], kind):
        raise ValueError(f"{name} is not one value of type {kind.__name__}")
    return values[0]


def _text(features: Mapping[str, Values], name: str) -> str:
    return _value(features, name, bytes).decode()


def write_example(out: str, count: int = 64, size: int = 128) -> Path:
    """A folder as `data=richhf` reads it, of `count` showroom images of `size` px in each split."""
    root, prompts = new_folder(out), {}
    (root / IMAGES).mkdir()
    world = Showroom(dict.fromkeys(SPLITS, count), size, holds=sorted(RichHF.fields))
    for split, file in FILES.items():
        records = []
        for record in map(world.split(split).__getitem__, range(count)):
            name, labels = f"{record['key']}.png", " ".join(map(str, record["aligned_words"]))
            Image.fromarray(record["image"].transpose(1, 2, 0)).save(root / IMAGES / name)
            prompts[record["key"]] = record["prompt"]
            maps = [png(values) for values in record["heatmaps"]]
            records.append(serialized(f"{split}/{name}", maps, record["scores"], labels))
        write_tfrecord(root / file, records)
    write_prompts(root / PROMPTS, prompts)
    return root


if __name__ == "__main__":
    sys.exit(example_command("src.data.richhf", write_example))
