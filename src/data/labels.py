"""The tables beside the images of RF1M: label.txt and titles; a million rows in seconds."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from src.data.archive import Fault
from src.data.batch import CLASSES
from src.data.tables import TableReader

UNSUITABLE = "unsuitable"  # the product photo itself is cut off or damaged; in the release, not in the article
NAMES = (*CLASSES, UNSUITABLE)
LABELS = {1: "available", 2: UNSUITABLE, **dict(enumerate(CLASSES[1:], 3))}  # release


def read_labels(
    path: Path, label_map: Mapping[Any, str] | None, separator: str | None, header: bool, fault: Fault
) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """The keys (image names), their lines from 1 (int32) and labels, int8 into NAMES, of "name label" lines.

    A label is a string of `label_map` (None: the release's), or a class name however written ("Space Mismatch"). It is
    the last cell of its line; everything before it is the name. separator None: the tab, comma or white space that
    precedes a label in the first line. Lines without a label and repeated names are faults.
    """
    label_map = label_map or LABELS
    if not path.is_file():
        raise ValueError(f"{path}: there is no such label file.")
    if unknown := sorted(set(label_map.values()) - set(NAMES)):
        raise ValueError(f"label_map names the class '{unknown[0]}'; the classes are {', '.join(NAMES)}.")
    numbers = {name.encode(): number for number, name in enumerate(NAMES)}
    numbers |= {str(text).strip().encode(): NAMES.index(name) for text, name in label_map.items()}

    def number_of(label: bytes) -> int | None:
        label = label.strip()
        return numbers[label] if label in numbers else numbers.get(re.sub(rb"[\s-]+", b"_", label.lower()))

    cuts = [separator.encode()] if separator else []
    lines: dict[bytes, int] = {}
    labels: list[int] = []
    with path.open("rb") as file:
        for line, text in enumerate(file, 1):
            text = (text.removeprefix(b"\xef\xbb\xbf") if line == 1 else text).strip()
            if not text or (header and line == 1):
                continue
            if not cuts:
                present = [cut for cut in (b"\t", b",", None) if cut is None or cut in text]
                cuts = [cut for cut in present if number_of(text.rsplit(cut, 1)[-1]) is not None] or present
            name, *cell = text.rsplit(cuts[0], 1)
            name, number = name.strip().replace(b"\\", b"/"), number_of(cell[0]) if cell else None
            if number is None:
                known = ", ".join([*map(str, label_map), *NAMES])
                label = cell[0].strip().decode("utf-8", "replace") if cell else ""
                problem = f"unknown label '{label}', the labels are {known}" if cell else "no label"
            elif (first := lines.setdefault(name, line)) != line:
                problem = f"duplicate key, first in line {first}"
            else:
                labels.append(number)
                continue
            fault(path, line, name.decode("utf-8", "replace"), problem)
    return list(lines), np.fromiter(lines.values(), np.int32), np.array(labels, np.int8)


def read_texts(path: Path, fault: Fault, encoding: str = "utf-8") -> tuple[list[bytes], dict[str, list[str]]]:
    """The keys of a table with `key`, `title` and maybe `prompt`, and these texts by field.

    A row with an empty key or text is left out, so that its image counts as one without a title. A malformed row, and
    one that has too many or too few cells or is not in `encoding`, is a fault.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such table of titles; data.titles=null says that there is none.")
    keys: list[bytes] = []
    texts: dict[str, list[str]] = {}
    for line, cells, problem in TableReader(path, ("key", "title"), encoding):
        fields = [field for field in ("title", "prompt") if field in cells]
        texts = texts or {field: [] for field in fields if not problem}
        if not problem and fields != list(texts):
            problem = f"has {', '.join(fields)}, but the first row {', '.join(texts)}"
        if problem:
            way = "; data.titles_encoding= names another encoding" if problem.startswith("is not ") else ""
            fault(path, line, cells.get("key", "").encode(errors="replace").decode(), f"{problem}{way}")
        elif cells["key"] and all(cells[field] for field in fields):
            keys.append(cells["key"].encode())
            for field in fields:
                texts[field].append(cells[field])
    return keys, texts
